//! What waits for disks and processes, beside the requests of others.
use viv_model::{Fault, Kind};

/// Does it on a thread that may wait.
pub(crate) async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let done = tokio::task::spawn_blocking(act).await;
    done.unwrap_or_else(|error| Err(defect(&error.to_string())))
}

/// The service has broken off.
pub(crate) fn defect(why: &str) -> Fault {
    Fault::new(
        Kind::Error,
        format!("the service broke off: {why}"),
        "this is a defect of ours: please report it",
    )
}
