//! The session's own commands, by group: methods of [`SessionCall`] that read their arguments and
//! write their reply or return their error; the arity is checked before.

mod connection;
pub(crate) mod server;
mod transactions;

use atoll_resp::{ReplyWriter, Request};

use crate::error::{self, Outcome};
use crate::server::Server;
use crate::session::Session;
use crate::table::{Command, Id};

/// One execution of a command on the session and the server.
pub(crate) struct SessionCall<'a> {
    pub server: &'a mut Server,
    pub session: &'a mut Session,
    pub request: Request<'a>,
    pub command: &'static Command,
}

impl<'a> SessionCall<'a> {
    /// Executes the command. An error replaces whatever it has replied.
    pub fn run(mut self) -> Outcome {
        match self.command.id {
            Id::Auth => self.auth(),
            Id::ClientGetname => self.client_getname(),
            Id::ClientId => self.client_id(),
            Id::ClientInfo => self.client_info(),
            Id::ClientKill => self.client_kill(),
            Id::ClientList => self.client_list(),
            Id::ClientNoEvict => self.client_no_evict(),
            Id::ClientNoTouch => self.client_no_touch(),
            Id::ClientReply => self.client_reply(),
            Id::ClientSetinfo => self.client_setinfo(),
            Id::ClientSetname => self.client_setname(),
            Id::Command => self.command_all(),
            Id::CommandCount => self.command_count(),
            Id::CommandDocs => self.command_docs(),
            Id::CommandGetkeys => self.command_getkeys(),
            Id::CommandInfo => self.command_info(),
            Id::CommandList => self.command_list(),
            Id::ConfigGet => self.config_get(),
            Id::ConfigResetstat => self.config_resetstat(),
            Id::ConfigSet => self.config_set(),
            Id::ClientHelp | Id::CommandHelp | Id::ConfigHelp | Id::MemoryHelp | Id::ObjectHelp => {
                self.help()
            }
            // Their arity demands a subcommand, which has a row of its own.
            Id::Client | Id::Config | Id::Memory | Id::Object => {
                Err(error::wrong_arity(self.command.name))
            }
            Id::Discard => self.discard(),
            Id::Echo => self.echo(),
            Id::Hello => self.hello(),
            Id::Info => self.info(),
            Id::Multi => self.multi(),
            Id::Ping => self.ping(),
            Id::Quit => self.quit(),
            Id::Reset => self.reset(),
            Id::Select => self.select(),
            Id::Unwatch => self.unwatch(),
            _ => Err(error::MISROUTED),
        }
    }

    /// Returns an argument that the arity check has proved to be there.
    pub fn arg(&self, index: usize) -> &'a [u8] {
        self.request.get(index).unwrap_or(&[])
    }

    /// Returns an argument as an integer.
    pub fn int_arg(&self, index: usize) -> Outcome<i64> {
        atoll_resp::number::parse_i64(self.arg(index)).ok_or(error::NOT_AN_INTEGER)
    }

    /// Returns whether an argument is this word, whatever its case.
    pub fn is(&self, index: usize, word: &str) -> bool {
        self.arg(index).eq_ignore_ascii_case(word.as_bytes())
    }

    /// Returns a writer for the client's protocol.
    pub fn reply(&mut self) -> ReplyWriter<'_> {
        self.session.reply()
    }
}
