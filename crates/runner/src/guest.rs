//! The seam to whatever computer the process runs.
use crate::console::Console;
use std::sync::Arc;
use viv_api::runner::RunnerSpec;
use viv_model::{Accel, End, Fault};

/// A guest that has been built. Every call may come from any thread.
pub trait Guest: Send + Sync {
    /// Lets the vCPUs run for the first time.
    fn start(&self) -> Result<(), Fault>;
    /// Lets them stand still.
    fn pause(&self) -> Result<(), Fault>;
    /// Lets them go on.
    fn resume(&self) -> Result<(), Fault>;
    /// Presses the power button; the guest may ignore it.
    fn power_button(&self);
    /// Ends the guest now: [`Guest::wait`] returns soon.
    fn kill(&self);
    /// Bytes for its serial line.
    fn console_input(&self, bytes: &[u8]);
    /// Returns when the guest has ended, and how.
    fn wait(&self) -> End;
    /// The processor that runs it: never [`Accel::Auto`].
    fn accel(&self) -> Accel;
}

/// Builds a guest whose serial output goes to the console. Called again for each reboot; everything that
/// the guest before had open is closed by then.
pub type Build = dyn Fn(&RunnerSpec, Arc<Console>) -> Result<Arc<dyn Guest>, Fault> + Send + Sync;

/// Builds a whole computer.
pub(crate) fn machine(_spec: &RunnerSpec, _console: Arc<Console>) -> Result<Arc<dyn Guest>, Fault> {
    Err(Fault::new(viv_model::Kind::Error, "there is no machine yet", "wait for it"))
}
