//! A program without commands, for databases that are used by transactions alone.

use std::convert::Infallible;

use atoll_kv::{Failure, Program};
use atoll_lsm::Durability;
use atoll_mvcc::keys::RoutingKey;
use atoll_shard::eval::{Eval, Interrupt, Sight};
use atoll_shard::leader::Base;

/// Has no commands, so nothing of it is ever asked. What other programs have written is there all the
/// same: entries are effects.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mute;

impl Program for Mute {
    type Call = Infallible;
    type Reply = Infallible;

    fn place<'c>(&self, call: &'c Infallible) -> RoutingKey<&'c [u8]> {
        match *call {}
    }

    fn sight(&self, call: &Infallible) -> Sight {
        match *call {}
    }

    fn durability(&self, call: &Infallible) -> Durability {
        match *call {}
    }

    fn run<B: Base>(
        &self,
        call: &Infallible,
        _: &mut Eval<'_, B>,
    ) -> Result<Infallible, Interrupt> {
        match *call {}
    }

    fn encode_call(&self, call: &Infallible, _: &mut Vec<u8>) {
        match *call {}
    }

    fn decode_call(&self, _: &[u8]) -> Result<Infallible, String> {
        Err("this engine knows no commands".to_owned())
    }

    fn encode_reply(&self, reply: &Infallible, _: &mut Vec<u8>) {
        match *reply {}
    }

    fn decode_reply(&self, _: &[u8]) -> Result<Infallible, String> {
        Err("this engine has asked for no command".to_owned())
    }

    fn failed(&self, call: &Infallible, _: &Failure) -> Infallible {
        match *call {}
    }
}
