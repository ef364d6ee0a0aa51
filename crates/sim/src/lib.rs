//! Crash tests of the storage engine: does it keep its promises when the power goes?

pub mod campaign;
pub mod check;
pub mod life;
pub mod model;
pub mod oracle;
pub mod point;
pub mod rot;
pub mod script;
