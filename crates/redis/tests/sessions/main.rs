//! Whole sessions, bytes in and replies out, over a store in memory.

#[cfg(test)]
mod differential;
#[cfg(test)]
mod scripts;
#[cfg(test)]
mod support;
#[cfg(test)]
mod turns;
