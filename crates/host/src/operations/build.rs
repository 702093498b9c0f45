//! Building images, and getting them from where they are.
use crate::boot_code;
use crate::builder::BuilderVm;
use crate::images::{self, Additions, Images, Options, Recipe, Watcher};
use crate::service::Service;
use viv_api::image::ImageBuild;
use viv_model::{Fault, Kind};
use viv_oci::Logins;

fn options(ask: &ImageBuild) -> Result<Options, Fault> {
    Ok(Options::new(match &ask.agent {
        Some(agent) => agent.clone(),
        None => images::find_agent()?,
    }))
}

/// Gets an image of containers, and makes sure that there is a kernel for it; or a program, which needs none.
fn pull_now(
    service: &Service,
    name: &str,
    ask: &ImageBuild,
    logins: &Logins,
    watcher: &dyn Watcher,
) -> Result<images::Image, Fault> {
    let images: &Images = &service.images;
    let there = match images.get(name) {
        _ if !ask.if_missing => None,
        Err(fault) if fault.kind == Kind::NotFound => None,
        found => Some(found?),
    };
    let no_image = || Fault::new(Kind::Usage, format!("{name:?} names no image"), "see: viv pull --help");
    let image = match there {
        Some(image) => image,
        None => {
            let options = viv_oci::Options { insecure: ask.insecure, logins: logins.clone() };
            images.pull(name, options, watcher)?.ok_or_else(no_image)?
        }
    };
    if image.manifest.container.is_some() {
        let kernel = options(ask).and_then(|options| ensure_default(service, &options, watcher));
        kernel.map_err(|fault| {
            let text = format!("{name} is there now, but no kernel for it: {}", fault.message);
            Fault { message: text, ..fault }
        })?;
    }
    Ok(image)
}

/// Sees that the default guest's image is there, with what the CPU makes of its kernel.
fn ensure_default(
    service: &Service,
    options: &Options,
    watcher: &dyn Watcher,
) -> Result<images::Image, Fault> {
    let image = service.images.ensure_default(options, watcher)?;
    boot_code::learn(service, &image, watcher);
    Ok(image)
}

/// Refuses what only images of Debian's packages have.
fn no_additions(name: &str, ask: &ImageBuild, additions: &Additions) -> Result<(), Fault> {
    if !additions.is_any() && ask.tag.is_none() && ask.command.is_none() {
        return Ok(());
    }
    Err(match ask.size_mib {
        Some(_) => Fault::new(
            Kind::Usage,
            "an image with packages or commands has no disk whose size could be chosen",
            "leave out --size: each VM of it has a disk of its own",
        ),
        None => Fault::new(
            Kind::Usage,
            format!("packages and commands are not added to the image {name:?}"),
            "add them to a Debian: viv build debian --package NAME --run 'COMMAND' --tag NAME",
        ),
    })
}

/// The image that is called so, if it is only to be there, and is: that is no work.
pub(super) fn there(service: &Service, name: &str, ask: &ImageBuild) -> Result<Option<images::Image>, Fault> {
    if !ask.is_only_if_missing() {
        return Ok(None);
    }
    let images = &service.images;
    let host = || -> Result<Option<images::Image>, Fault> {
        let image = images.current_default(&options(ask)?)?;
        Ok(image.filter(|image| boot_code::is_known(service, image)))
    };
    if name == Recipe::DefaultGuest.name() {
        return host();
    }
    let image = images.get(name)?;
    let needs_kernel = viv_oci::Reference::is_one(name) && image.manifest.container.is_some();
    let is_whole = !needs_kernel || host()?.is_some();
    Ok(is_whole.then_some(image))
}

/// Has the image that is called so.
pub(super) fn build(
    service: &Service,
    name: &str,
    ask: &ImageBuild,
    logins: &Logins,
    watcher: &dyn Watcher,
) -> Result<images::Image, Fault> {
    let images: &Images = &service.images;
    let additions = Additions {
        packages: ask.packages.clone(),
        run: ask.run.clone(),
        tag: ask.tag.clone(),
        command: ask.command.clone(),
        epoch: ask.source_date_epoch,
    };
    if name != Recipe::Debian.name() || ask.size_mib.is_some() && additions.is_any() {
        no_additions(name, ask, &additions)?;
    }
    if viv_oci::Reference::is_one(name) {
        return pull_now(service, name, ask, logins, watcher);
    }
    let Some(recipe) = Recipe::ALL.into_iter().find(|recipe| recipe.name() == name) else {
        if ask.if_missing {
            return images.get(name);
        }
        let names: Vec<_> = Recipe::ALL.iter().map(|recipe| recipe.name()).collect();
        return Err(Fault::new(
            Kind::NotFound,
            format!("there is no recipe for an image called {name:?}"),
            format!("build one of these: {}", names.join(", ")),
        ));
    };
    if ask.if_missing && recipe != Recipe::DefaultGuest {
        match images.get(name) {
            Err(fault) if fault.kind == Kind::NotFound => {}
            outcome => return outcome,
        }
    }
    if ask.if_missing && recipe == Recipe::Kernel {
        // Nobody waits minutes for what cannot be run.
        return Err(Images::kernel_alone());
    }
    let mut options = options(ask)?;
    options.force = ask.force;
    options.disk_mib = ask.size_mib.unwrap_or(options.disk_mib);
    if ask.if_missing && recipe == Recipe::DefaultGuest {
        return ensure_default(service, &options, watcher);
    }
    let cancelled = || watcher.cancelled();
    let networks = &service.vms.networks;
    let vm = BuilderVm { places: &service.places, networks, cancelled: &cancelled };
    if additions.is_any() {
        return images.build_container(&additions, &options, &vm, watcher);
    }
    let image = images.build(recipe, &options, Some(&vm), watcher)?;
    if recipe == Recipe::Kernel {
        options.force = false;
        ensure_default(service, &options, watcher)?;
    }
    if recipe == Recipe::DefaultGuest {
        boot_code::learn(service, &image, watcher);
    }
    Ok(image)
}
