//! `viv import`: machines of other programs become images.
use super::{Context, build, operation};
use crate::{output, size};
use std::path::PathBuf;
use viv_api::client::Request;
use viv_api::endpoint::Route;
use viv_api::image::{ImageImport, Imported};
use viv_model::{Fault, Kind};

#[derive(clap::Args, Debug)]
#[command(
    after_help = "What it is, is told by its content: an OVA, or an OVF or VMware's .vmx with its disks beside it; what virsh dumpxml prints, with its disks; a backup of\n\
                  Proxmox VE (.vma, .vma.zst, .vma.gz, .vma.lzo); a Vagrant box for libvirt or VirtualBox; a disk: VMDK, VHDX, VHD, VDI, qcow2, raw. Its files are\n\
                  only read. What cannot be carried over is listed. VMs of the image boot the Linux kernel that is on its disks.\n\n  \
                  viv import appliance.ova\n  \
                  viv run -d appliance\n  \
                  viv import --dry-run vzdump-qemu-100.vma.zst      look only"
)]
pub(crate) struct Import {
    /// The machine's file
    #[arg(value_name = "FILE")]
    source: PathBuf,
    /// The image's name; that of the machine if none is given
    #[arg(long, value_name = "IMAGE")]
    name: Option<String>,
    /// Say what it is and what cannot be carried over, and make nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the image's name only
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    detach: operation::Detach,
}

pub(crate) fn run(context: &Context, args: Import) -> Result<u8, Fault> {
    let path = std::path::absolute(&args.source).map_err(|error| {
        Fault::new(Kind::Usage, format!("{}: {error}", args.source.display()), "name the machine's file")
    })?;
    let name = args.name.map(|name| super::pull::full_name(&name).map(|full| full.unwrap_or(name)));
    let ask = ImageImport { path, name: name.transpose()?, dry_run: args.dry_run };
    let request = Request::new(Route::ImageImport, &[]).body(&ask);
    let imported = match operation::work::<Imported>(context, request, "the import", &args.detach)? {
        Ok(imported) => imported,
        Err(status) => return Ok(status),
    };
    if context.json {
        output::json(&imported);
        return Ok(0);
    }
    match &imported.image {
        Some(image) => output::print(&build::line(image, args.quiet)),
        None => output::print(&format!("{}  not made: only looked at\n", imported.name)),
    }
    if !args.quiet {
        output::print(&told(&imported));
    }
    Ok(0)
}

/// What it is and what it is not, a line each.
fn told(imported: &Imported) -> String {
    let mut rows = vec![("from", imported.from.clone())];
    rows.extend(imported.cpus.map(|cpus| ("processors", cpus.to_string())));
    rows.extend(imported.memory_mib.map(|mib| ("memory", size::bytes(mib.saturating_mul(1 << 20)))));
    for disk in &imported.disks {
        let bytes = disk.size_bytes.map_or_else(String::new, |bytes| format!("  {}", size::bytes(bytes)));
        rows.push(("disk", format!("{}{bytes}", disk.name)));
    }
    rows.extend(imported.boots.iter().map(|boots| ("boots", boots.clone())));
    rows.extend(imported.left.iter().map(|item| ("not carried over", item.clone())));
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 2;
    rows.iter().map(|(name, value)| format!("  {name:width$}{value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use viv_api::image::ImportedDisk;

    #[test]
    fn each_item_has_its_line() {
        let imported = Imported {
            name: "box".into(),
            from: "OVA".into(),
            image: None,
            cpus: Some(2),
            memory_mib: None,
            disks: vec![ImportedDisk { name: "a.vmdk".into(), size_bytes: None }],
            boots: Some("Debian (/vmlinuz)".into()),
            left: vec!["sound card: x".into(), "USB: y".into()],
        };
        let lines = told(&imported);
        let lines: Vec<&str> = lines.lines().map(str::trim).collect();
        assert_eq!(lines.len(), 6, "{lines:?}");
        assert_eq!(lines[4], "not carried over  sound card: x");
    }
}
