//! What the operator allows VMs to have of this host: kept in the store.
use crate::admission::Share;
use crate::events::tell;
use crate::store::StoreError;
use crate::vms::Vms;
use viv_api::event::{Event, What};
use viv_api::limits::{HostLimits, Taken};
use viv_model::{Fault, Kind, Limits, ProjectName};

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

    /// What is allowed, and what is taken: of the host, or of a project.
    pub(crate) fn limits(&self, project: Option<&ProjectName>) -> HostLimits {
        let of = |share| {
            let (taken, most) = self.admission.use_of(share, project);
            Taken { taken: taken.into(), most: most.into() }
        };
        HostLimits {
            limits: match project {
                None => self.admission.limits(),
                Some(project) => self.admission.project(project).unwrap_or_default().limits,
            },
            described: of(Share::Described),
            running: of(Share::Running),
        }
    }

    /// Allows the host's VMs so much from now on, or a project's. What is there already stays.
    pub(crate) fn set_limits(
        &self,
        project: Option<&ProjectName>,
        limits: Limits,
    ) -> Result<HostLimits, Fault> {
        limits.check()?;
        if let Some(project) = project {
            self.limit_project(project, limits)?;
            tell(&*self.store, Event::new(What::LimitsChanged, None, project.as_str()));
            return Ok(self.limits(Some(project)));
        }
        let text = serde_json::to_string(&limits).map_err(|error| StoreError::Io {
            what: "write",
            path: "the limits".into(),
            source: error.into(),
        })?;
        self.store.set_fact(FACT, &text)?;
        self.admission.set_limits(limits);
        tell(&*self.store, Event::new(What::LimitsChanged, None, "limits"));
        Ok(self.limits(None))
    }
}
