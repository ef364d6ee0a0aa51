//! The simulated half: one thread, virtual time, and a seed that names one execution.
