//! The ports of this host that lead into VMs: taken by the service, which says why if it cannot, and then handed to the
//! VM's switch.
use viv_model::{Fault, NicSpec};
use viv_net::switch::Listeners;

/// Opens a card's published ports.
pub(super) fn listen(nic: &NicSpec) -> Result<Listeners, Fault> {
    Listeners::open(&nic.ports).map_err(|error| Fault::from(&error))
}
