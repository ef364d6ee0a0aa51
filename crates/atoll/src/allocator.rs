//! The allocator of the process, chosen when the program is built: `cargo build -p atoll --features
//! mimalloc`. Which is the default stands in `Cargo.toml`; `cargo xtask bench-allocators` measures
//! them side by side.
//!
//! What the engine holds in bulk (memtables, blocks) it maps or asks for in large pieces; an allocator
//! shows in what comes and goes with every request.

#[cfg(all(feature = "jemalloc", not(feature = "system")))]
mod chosen {
    #[global_allocator]
    static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
    pub(super) const NAME: &str = "jemalloc";
    pub(super) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (allocator jemalloc)");
}

#[cfg(all(feature = "mimalloc", not(feature = "jemalloc"), not(feature = "system")))]
mod chosen {
    #[global_allocator]
    static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
    pub(super) const NAME: &str = "mimalloc";
    pub(super) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (allocator mimalloc)");
}

#[cfg(any(feature = "system", not(any(feature = "jemalloc", feature = "mimalloc"))))]
mod chosen {
    /// As Redis calls it.
    pub(super) const NAME: &str = "libc";
    pub(super) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (allocator libc)");
}

/// Its name, as INFO tells it.
pub(crate) const NAME: &str = chosen::NAME;
/// The program's version and the allocator's name, as `--version` tells them.
pub(crate) const VERSION: &str = chosen::VERSION;
