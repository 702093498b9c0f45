//! Projects: what of a host belongs together, and does not see the rest.
//!
//! A request acts in one project ([`Scope`]). What it names is looked up there, once, and found by identity from there on; so a name is
//! unique in its project only, and another project's is as if it were not there. A token or certificate that is bound to a project
//! acts in no other, and has nothing of what is the host's.
use crate::access::Access;
use crate::admission::Share;
use crate::service::Service;
use crate::store::StoreError;
use crate::vms::Vms;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use viv_api::endpoint::query_value;
use viv_api::event::Event;
use viv_api::limits::Taken;
use viv_api::operation::Operation;
use viv_api::project::{Project, ProjectCreate};
use viv_api::timestamp::Timestamp;
use viv_model::{Fault, Kind, Limits, ProjectName};

/// What the projects are remembered as.
const FACT: &str = "projects";
/// Most of them.
const PROJECTS_MAX: usize = 1024;
/// Most characters of a comment.
const COMMENT_MAX: usize = 1024;

/// What is remembered of a project.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Kept {
    pub(crate) comment: String,
    pub(crate) created_at: Option<Timestamp>,
    pub(crate) limits: Limits,
}

/// All projects; `default` is in it only if something is remembered of it.
pub(crate) type Projects = BTreeMap<ProjectName, Kept>;

/// Something that is kept in a file of its own, with its project.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Within<T> {
    #[serde(default, skip_serializing_if = "ProjectName::is_default")]
    pub(crate) project: ProjectName,
    #[serde(flatten)]
    pub(crate) it: T,
}

/// No project is called so, or none that he sees who asks.
pub(crate) fn unknown(name: &str) -> Fault {
    Fault::new(
        Kind::NotFound,
        format!("no project is called {name:?}"),
        "see what there is: viv project ls; make one: viv project create NAME",
    )
}

/// Where a request acts, and what it sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scope {
    /// What it names is in this project, and so is what it makes.
    pub(crate) project: ProjectName,
    /// Who asks is bound to it.
    pub(crate) bound: bool,
    /// The project was named; else it is `default` for want of another one.
    named: bool,
    /// Lists are of all projects.
    all: bool,
}

impl Scope {
    /// What a request's query says; `bound` is the project that who asks is bound to, and `exists` says which there are.
    pub(crate) fn of(
        bound: Option<&ProjectName>,
        query: &str,
        exists: impl Fn(&ProjectName) -> bool,
    ) -> Result<Scope, Fault> {
        let said = query_value(query, "project").filter(|name| !name.is_empty());
        let all = query_value(query, "all-projects").is_some_and(|value| value != "false");
        let scope = match bound {
            Some(project) => Scope { project: project.clone(), bound: true, named: true, all: false },
            None => Scope { named: said.is_some(), all, ..Scope::default() },
        };
        match said {
            None => Ok(scope),
            Some(name) => {
                let project = scope.enter(&name, exists)?;
                Ok(Scope { project, ..scope })
            }
        }
    }

    /// The project of this name, if who asks may act there.
    pub(crate) fn enter(
        &self,
        name: &str,
        exists: impl Fn(&ProjectName) -> bool,
    ) -> Result<ProjectName, Fault> {
        // For who is bound, a name that none can have is as unknown as that of another one.
        let project: Option<ProjectName> = name.parse().ok();
        let may = |project: &ProjectName| if self.bound { *project == self.project } else { exists(project) };
        project.filter(may).ok_or_else(|| unknown(name))
    }

    /// Whether a list of it has what is in this project.
    pub(crate) fn shows(&self, project: &ProjectName) -> bool {
        self.all && !self.bound || *project == self.project
    }

    /// The project that numbers are of; none: all of the host.
    pub(crate) fn only(&self) -> Option<&ProjectName> {
        self.named.then_some(&self.project)
    }

    /// Whether it is told of an event.
    pub(crate) fn hears(&self, event: &Event) -> bool {
        let of_host = !self.bound && event.is_of_host();
        of_host || self.all && !self.bound || event.is_of(&self.project)
    }

    /// Whether it sees a long work: who is bound those that his project has begun, others all.
    pub(crate) fn sees(&self, operation: &Operation) -> bool {
        !self.bound || operation.project.as_ref() == Some(&self.project)
    }

    /// Whether a list of long works has this one.
    pub(crate) fn lists(&self, operation: &Operation) -> bool {
        let only = self.only().filter(|_| self.bound || !self.all);
        only.is_none_or(|project| operation.project.as_ref() == Some(project))
    }
}

impl Vms {
    /// Takes over what was remembered.
    pub(crate) fn load_projects(&self) -> Result<(), Fault> {
        if let Some(text) = self.store.fact(FACT)? {
            let projects = serde_json::from_str(&text).map_err(|error| {
                let text = format!("the projects of this host are not understood: {error}");
                Fault::new(Kind::Error, text, "use the release that wrote them")
            })?;
            self.admission.set_projects(projects);
        }
        Ok(())
    }

    /// Whether there is such a project.
    pub(crate) fn has_project(&self, name: &ProjectName) -> bool {
        self.admission.project(name).is_some()
    }

    fn remember(&self, projects: &Projects) -> Result<(), Fault> {
        let text = serde_json::to_string(projects).map_err(|error| StoreError::Io {
            what: "write",
            path: "the projects".into(),
            source: error.into(),
        })?;
        Ok(self.store.set_fact(FACT, &text)?)
    }

    fn show_project(&self, name: ProjectName, kept: Kept) -> Project {
        let (taken, most) = self.admission.use_of(Share::Described, Some(&name));
        let Kept { comment, created_at, limits } = kept;
        Project {
            name,
            comment,
            created_at,
            limits,
            described: Taken { taken: taken.into(), most: most.into() },
        }
    }

    /// The projects that a scope sees, by name.
    pub(crate) fn projects(&self, bound: Option<&ProjectName>) -> Vec<Project> {
        let mut all = self.admission.projects();
        all.entry(ProjectName::default()).or_default();
        all.retain(|name, _| bound.is_none_or(|bound| bound == name));
        all.into_iter().map(|(name, kept)| self.show_project(name, kept)).collect()
    }

    /// One of them.
    pub(crate) fn project(&self, name: &str, bound: Option<&ProjectName>) -> Result<Project, Fault> {
        let named = |project: &Project| project.name.as_str() == name;
        self.projects(bound).into_iter().find(named).ok_or_else(|| unknown(name))
    }

    /// Makes a project.
    pub(crate) fn create_project(&self, ask: &ProjectCreate) -> Result<Project, Fault> {
        let name: ProjectName = ask.name.parse()?;
        ask.limits.check()?;
        if ask.comment.chars().count() > COMMENT_MAX {
            let text = format!("the comment has more than {COMMENT_MAX} characters");
            return Err(Fault::new(Kind::Usage, text, "say less"));
        }
        let kept =
            Kept { comment: ask.comment.clone(), created_at: Some(Timestamp::now()), limits: ask.limits };
        self.admission.change_projects(|projects, _| {
            if name.is_default() || projects.contains_key(&name) {
                return Err(Fault::new(
                    Kind::Conflict,
                    format!("a project called {name} exists already"),
                    format!("choose another name, or see it with: viv project show {name}"),
                ));
            }
            if projects.len() >= PROJECTS_MAX {
                let text = format!("there are {PROJECTS_MAX} projects, which is the most");
                return Err(Fault::new(Kind::NoCapacity, text, "remove some: viv project rm"));
            }
            projects.insert(name.clone(), kept.clone());
            self.remember(projects)
        })?;
        Ok(self.show_project(name, kept))
    }

    /// Lets the VMs of a project have so much together from now on. What is there already stays.
    pub(crate) fn limit_project(&self, name: &ProjectName, limits: Limits) -> Result<(), Fault> {
        self.admission.change_projects(|projects, _| {
            if !name.is_default() && !projects.contains_key(name) {
                return Err(unknown(name.as_str()));
            }
            projects.entry(name.clone()).or_default().limits = limits;
            self.remember(projects)
        })
    }
}

/// Does something in a project that has to be there, and is not removed meanwhile.
pub(crate) fn held<T>(
    service: &Service,
    project: Option<&ProjectName>,
    act: impl FnOnce() -> Result<T, Fault>,
) -> Result<T, Fault> {
    let _turn = service.vms.admission.hold_projects();
    match project.filter(|project| !service.vms.has_project(project)) {
        Some(project) => Err(unknown(project.as_str())),
        None => act(),
    }
}

/// Forgets a project in which nothing is left.
pub(crate) fn remove(service: &Service, name: &str) -> Result<Project, Fault> {
    let (vms, access): (&Vms, &Access) = (&service.vms, &service.access);
    let _turn = vms.admission.hold_projects();
    let removed = vms.project(name, None)?;
    let project = &removed.name;
    if project.is_default() {
        let text = "the project default is always there";
        return Err(Fault::new(Kind::Usage, text, "remove what is in it, and leave it"));
    }
    let here = |of: &ProjectName| of == project;
    let is_bound = |pass: &viv_api::access::Pass| pass.project.as_ref().is_some_and(here);
    let passes = access.passes.list().into_iter().filter(is_bound);
    let snapshots = service.snapshots.list(here)?.into_iter().map(|it| ("the snapshot", it.name));
    let networks = vms.networks(here)?.into_iter().map(|it| ("the network", it.spec.name));
    let groups = vms.secgroups(here)?.into_iter().map(|it| ("the security group", it.name));
    let volumes = vms.volumes(here)?.into_iter().map(|it| ("the volume", it.name));
    let passes = passes.map(|it| ("the token or certificate of", it.name));
    let left = snapshots.chain(volumes).chain(networks).chain(groups).chain(passes).next();
    let refused = |what: String| {
        Fault::new(
            Kind::Conflict,
            format!("the project {project} is not empty: it has {what}"),
            format!("remove what is in it first: viv --project {project} ps -a, and so on; viv token ls"),
        )
    };
    if let Some((what, called)) = left {
        return Err(refused(format!("{what} {called}")));
    }
    vms.admission.change_projects(|projects, vms_of| {
        match vms_of(project) {
            0 => {}
            count => return Err(refused(format!("{count} VMs"))),
        }
        projects.remove(project);
        vms.remember(projects)
    })?;
    Ok(removed)
}

#[cfg(test)]
mod tests;
