//! A worker: the data plane of one generation. `control` follows the keeper, `plane` holds the data threads.

mod control;
mod drain;
mod order;
mod orphan;
mod plane;
mod probe;
mod thread;

pub use crate::session::{Ending, Scope};
pub use control::{WorkerError, run};
pub use drain::DrainOrder;
pub use plane::{Plane, PlaneError};
