//! The real half: threads, blocking system calls, the machine's clock and sockets.
