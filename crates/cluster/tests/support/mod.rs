//! A bank on whatever engines there are.

use atoll_keyspaces::Mute;
use atoll_kv::Core;
use atoll_mvcc::Value;
use atoll_mvcc::keys::{Placement, SLOTTED};
use atoll_mvcc::request::Isolation;

/// How many accounts there are.
pub const ACCOUNTS: u64 = 8;
/// What is on all of them together.
pub const TOTAL: u64 = ACCOUNTS * 100;

fn account(n: u64) -> Vec<u8> {
    Placement::Slots.key(SLOTTED + 16, format!("account{n}").as_bytes())
}

fn stored(n: u64) -> Vec<u8> {
    Value { deadline_ms: None, payload: &n.to_le_bytes() }.encode()
}

fn balance(bytes: Option<Vec<u8>>) -> u64 {
    let payload = |bytes: &[u8]| Value::decode(bytes).expect("what was stored").payload.to_vec();
    bytes.map_or(0, |bytes| u64::from_le_bytes(payload(&bytes).try_into().expect("a number")))
}

/// Opens the accounts.
pub async fn fill(core: &Core<Mute>) -> Result<(), atoll_txn::Error> {
    let body = async |txn: &mut atoll_txn::Transaction<_, _>| {
        for n in 0..ACCOUNTS {
            txn.put(&account(n), &stored(100)).await?;
        }
        Ok(())
    };
    core.coordinator().run(Isolation::Serializable, body).await.map(|_| ())
}

/// Adds all accounts up.
pub async fn audit(core: &Core<Mute>) -> Result<u64, atoll_txn::Error> {
    let body = async |txn: &mut atoll_txn::Transaction<_, _>| {
        let mut sum = 0;
        for n in 0..ACCOUNTS {
            sum += balance(txn.get(&account(n)).await?);
        }
        Ok(sum)
    };
    core.coordinator().run(Isolation::Serializable, body).await.map(|(sum, _)| sum)
}

/// Moves money from one account to another, if there is some.
pub async fn transfer(core: &Core<Mute>, from: u64, to: u64) -> Result<(), atoll_txn::Error> {
    let body = async |txn: &mut atoll_txn::Transaction<_, _>| {
        let x = balance(txn.get(&account(from)).await?);
        let y = balance(txn.get(&account(to)).await?);
        if x > 0 {
            txn.put(&account(from), &stored(x - 1)).await?;
            txn.put(&account(to), &stored(y + 1)).await?;
        }
        Ok(())
    };
    core.coordinator().run(Isolation::Serializable, body).await.map(|_| ())
}
