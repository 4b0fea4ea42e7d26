//! A worker: the data plane of one generation. `control` follows the keeper, `plane` holds the data threads; by `paths`
//! sessions go to another worker (`give`) and come from one (`take`).

mod control;
mod drain;
mod give;
mod order;
mod orphan;
mod paths;
mod plane;
mod probe;
mod take;
mod thread;
mod vault;

pub use crate::session::{Ending, Scope};
pub use control::{WorkerError, run};
pub use drain::DrainOrder;
pub use plane::{Plane, PlaneError};
