//! What the operator allows VMs to have of this host: kept in the store.
use crate::admission::Share;
use crate::events::tell;
use crate::store::StoreError;
use crate::vms::Vms;
use viv_api::event::{Event, What};
use viv_api::limits::{HostLimits, Taken};
use viv_model::{Fault, Kind, Limits};

/// What the limits are remembered as.
const FACT: &str = "limits";

impl Vms {
    /// Takes over what was remembered.
    pub(crate) fn load_limits(&self) -> Result<(), Fault> {
        if let Some(text) = self.store.fact(FACT)? {
            let limits = serde_json::from_str(&text).map_err(|error| {
                Fault::new(
                    Kind::Error,
                    format!("the limits of this host are not understood: {error}"),
                    "use the release that wrote them",
                )
            })?;
            self.admission.set_limits(limits);
        }
        Ok(())
    }

    /// What is allowed, and what is taken.
    pub(crate) fn limits(&self) -> HostLimits {
        let of = |share| {
            let (taken, most) = self.admission.use_of(share);
            Taken { taken: taken.into(), most: most.into() }
        };
        HostLimits {
            limits: self.admission.limits(),
            described: of(Share::Described),
            running: of(Share::Running),
        }
    }

    /// Allows so much from now on. What is there already stays.
    pub(crate) fn set_limits(&self, limits: Limits) -> Result<HostLimits, Fault> {
        limits.check()?;
        let text = serde_json::to_string(&limits).map_err(|error| StoreError::Io {
            what: "write",
            path: "the limits".into(),
            source: error.into(),
        })?;
        self.store.set_fact(FACT, &text)?;
        self.admission.set_limits(limits);
        tell(&*self.store, Event::new(What::LimitsChanged, None, "limits"));
        Ok(self.limits())
    }
}
