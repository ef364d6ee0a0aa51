//! The allocator that was built in, by a feature of this crate. `atoll` has the same for the server.

#[cfg(any(feature = "system", not(any(feature = "jemalloc", feature = "mimalloc"))))]
mod chosen {
    pub use std::alloc::System as Heap;
    pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (allocator libc)");
}

#[cfg(all(feature = "mimalloc", not(feature = "jemalloc"), not(feature = "system")))]
mod chosen {
    pub use mimalloc::MiMalloc as Heap;
    pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (allocator mimalloc)");
}

#[cfg(all(feature = "jemalloc", not(feature = "system")))]
mod chosen {
    pub use tikv_jemallocator::Jemalloc as Heap;
    pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (allocator jemalloc)");
}

pub use chosen::{Heap, VERSION};
