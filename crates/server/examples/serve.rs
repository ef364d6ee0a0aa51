//! The smallest server: `cargo run --release -p atoll-server --example serve -- DIR [ADDRESS]`.
//!
//! It has no flags and no pages; it shows what a program has to bring together, and serves for
//! measuring the core alone. It runs until it is killed.

use std::error::Error;
use std::net::SocketAddr;

use atoll_env::os;
use atoll_lsm::{Database, Options};
use atoll_redis::{Config, Identity};
use atoll_server::{EngineStore, Server};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: serve DIR [ADDRESS], for example: serve ./data 127.0.0.1:7379";
    let dir = args.next().ok_or(usage)?;
    let addr: SocketAddr = args.next().as_deref().unwrap_or("127.0.0.1:7379").parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let env = os::env()?;
        let options = Options::new(env.clone());
        let database = Database::builder(dir).options(options).open_async().await?;
        let store = EngineStore::open(database.clone()).await?;
        let run_id = env.random.next_u64();
        let identity = Identity { version: "example", process_id: std::process::id(), run_id };
        let server = Server::bind(env, addr, store, Config::default(), identity).await?;
        println!("serving on {}", server.local_addr());
        server.run(std::future::pending()).await;
        Ok(())
    })
}
