//! OVF, the description of a machine in a package (DMTF DSP0243 1.1 and 2.1), as VMware, VirtualBox and others write it. Hardware is described
//! by items of CIM (DSP1057, "Virtual System Profile"): `CIM_ResourceAllocationSettingData`.
use crate::fault::{damaged, unsupported};
use crate::machine::{Machine, MachineDisk, Origin};
use crate::xml::{self, attribute, child, children, text};
use roxmltree::Node;
use viv_model::Fault;

/// Most disks of a machine.
pub(crate) const DISKS_MAX: usize = 64;
/// Largest disk that is read: 64 TiB.
pub(crate) const DISK_MAX: u64 = 64 << 40;

/// A file of the package that a disk is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Its name in the package.
    pub(crate) file: String,
    /// Its bytes there, if that is said.
    pub(crate) bytes: Option<u64>,
    /// It is compressed by gzip.
    pub(crate) gzip: bool,
}

/// What a description says.
#[derive(Debug)]
pub(crate) struct Description {
    pub(crate) machine: Machine,
    /// The file of each of its disks.
    pub(crate) references: Vec<Reference>,
}

/// `ResourceType` of CIM (DSP1043, CIM_ResourceAllocationSettingData).
mod resource {
    pub(super) const PROCESSOR: u64 = 3;
    pub(super) const MEMORY: u64 = 4;
    pub(super) const ETHERNET: u64 = 10;
    pub(super) const FLOPPY: u64 = 14;
    pub(super) const CD: u64 = 15;
    pub(super) const DVD: u64 = 16;
    pub(super) const DISK: u64 = 17;
    pub(super) const SERIAL: u64 = 21;
    pub(super) const PARALLEL: u64 = 22;
    pub(super) const USB: u64 = 23;
    pub(super) const GRAPHICS: u64 = 24;
    pub(super) const SOUND: u64 = 35;
}

/// An item of hardware.
struct Item<'a, 'i> {
    node: Node<'a, 'i>,
    kind: u64,
    id: &'a str,
}

impl<'a> Item<'a, '_> {
    fn text(&self, name: &'static str) -> Option<&'a str> {
        text(self.node, name)
    }

    fn number(&self, name: &'static str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// What it is called, and its model.
    fn label(&self) -> String {
        let name = self.text("ElementName").or_else(|| self.text("Caption")).unwrap_or("without a name");
        match self.text("ResourceSubType") {
            Some(model) => format!("{name} ({model})"),
            None => name.to_string(),
        }
    }
}

/// Reads a description; `what` is its name for a person.
pub(crate) fn parse(text: &str, what: &str) -> Result<Description, Fault> {
    let document = xml::parse(text, what)?;
    let envelope = document.root_element();
    if envelope.tag_name().name() != "Envelope" {
        return Err(damaged(what, format!("its root is {:?}, and not Envelope", envelope.tag_name().name())));
    }
    let systems: Vec<Node<'_, '_>> =
        envelope.descendants().filter(|node| node.tag_name().name() == "VirtualSystem").collect();
    let system = match &systems[..] {
        [system] => *system,
        [] => return Err(damaged(what, "it describes no machine (VirtualSystem)")),
        several => {
            let why = format!("it holds {} machines", several.len());
            return Err(unsupported(what, why, "export each of them alone, and import these"));
        }
    };
    let mut machine = Machine::new(Origin::Ovf);
    let name = xml::text(system, "Name").or_else(|| attribute(system, "id"));
    machine.name = name.map(crate::machine::shown);
    let Some(hardware) = child(system, "VirtualHardwareSection") else {
        return Err(damaged(what, "its machine has no hardware (VirtualHardwareSection)"));
    };
    let configuration = default_configuration(envelope);
    let items: Vec<Item<'_, '_>> = hardware
        .children()
        .filter(|node| matches!(node.tag_name().name(), "Item" | "StorageItem" | "EthernetPortItem"))
        .filter(|node| attribute(*node, "bound").is_none())
        .filter(|node| match attribute(*node, "configuration") {
            None => true,
            Some(of) => of.split_whitespace().any(|of| Some(of) == configuration),
        })
        .map(|node| Item {
            node,
            kind: xml::text(node, "ResourceType").and_then(|kind| kind.parse().ok()).unwrap_or(0),
            id: xml::text(node, "InstanceID").unwrap_or_default(),
        })
        .collect();
    let processors = items.iter().filter(|item| item.kind == resource::PROCESSOR);
    let processors: u64 =
        processors.filter_map(|item| item.number("VirtualQuantity")).fold(0, u64::saturating_add);
    machine.cpus = u32::try_from(processors).ok().filter(|count| *count > 0);
    let memory = items.iter().find(|item| item.kind == resource::MEMORY);
    machine.memory_mib = memory.and_then(memory_mib);
    let references = disks(envelope, &items, what, &mut machine)?;
    if machine.disks.is_empty() {
        return Err(unsupported(what, "its machine has no disks", "import a machine that has one"));
    }
    leave_devices(&items, &mut machine);
    leave_rest(envelope, system, &mut machine);
    Ok(Description { machine, references })
}

/// The configuration that is taken if none is chosen (DSP0243 §9.8, "DeploymentOptionSection").
fn default_configuration<'a>(envelope: Node<'a, '_>) -> Option<&'a str> {
    let section = child(envelope, "DeploymentOptionSection")?;
    let all = || children(section, "Configuration");
    let default = all().find(|node| matches!(attribute(*node, "default"), Some("true" | "1")));
    attribute(default.or_else(|| all().next())?, "id")
}

/// Memory, which is in megabytes if nothing is said: programs that say nothing mean these.
fn memory_mib(item: &Item<'_, '_>) -> Option<u64> {
    let count = item.number("VirtualQuantity")?;
    let unit = match item.text("AllocationUnits") {
        Some(words) => unit(words)?,
        None => 1 << 20,
    };
    Some(count.checked_mul(unit)? >> 20)
}

/// The bytes of a unit as CIM writes them: `byte * 2^20` (DSP0004, Annex C), or by an older name.
fn unit(words: &str) -> Option<u64> {
    let words = words.trim().to_ascii_lowercase();
    let plain = words.strip_suffix('s').unwrap_or(&words);
    match plain {
        "byte" | "" => return Some(1),
        "kilobyte" | "kb" | "kib" => return Some(1 << 10),
        "megabyte" | "mb" | "mib" => return Some(1 << 20),
        "gigabyte" | "gb" | "gib" => return Some(1 << 30),
        "terabyte" | "tb" | "tib" => return Some(1 << 40),
        _ => {}
    }
    let mut factors = words.split('*').map(str::trim);
    if !matches!(factors.next()?, "byte" | "bytes") {
        return None;
    }
    factors.try_fold(1u64, |product, factor| {
        let (number, power) = factor.split_once('^').unwrap_or((factor, "1"));
        let number: u64 = number.trim().parse().ok()?;
        product.checked_mul(number.checked_pow(power.trim().parse().ok()?)?)
    })
}

/// The disks in the order of their controllers; the file of each.
fn disks(
    envelope: Node<'_, '_>,
    items: &[Item<'_, '_>],
    what: &str,
    machine: &mut Machine,
) -> Result<Vec<Reference>, Fault> {
    let place = |id: &str| items.iter().position(|item| item.id == id);
    let mut drives: Vec<(usize, u64, &Item<'_, '_>)> = items
        .iter()
        .filter(|item| item.kind == resource::DISK)
        .map(|item| {
            let controller = item.text("Parent").and_then(place).unwrap_or(usize::MAX);
            (controller, item.number("AddressOnParent").unwrap_or(u64::MAX), item)
        })
        .collect();
    drives.sort_by_key(|(controller, address, _)| (*controller, *address));
    if drives.len() > DISKS_MAX {
        return Err(damaged(what, format!("its machine has {} disks", drives.len())));
    }
    let mut found = Vec::new();
    for (_, _, drive) in drives {
        let label = drive.text("ElementName").unwrap_or("a disk");
        let Some(resource) = drive.text("HostResource") else {
            machine.leave(format!("{label}: an empty disk drive"));
            continue;
        };
        let (reference, size) = disk(envelope, resource, what)?;
        match reference {
            Some(reference) => {
                machine.disks.push(MachineDisk { name: crate::machine::shown(&reference.file), size });
                found.push(reference);
            }
            None => {
                let size = size.map_or_else(String::new, |size| format!(" of {} MiB", size >> 20));
                machine.leave(format!(
                    "{label}: an empty disk{size}; make it with viv disk create, and name it: --disk"
                ));
            }
        }
    }
    Ok(found)
}

/// A disk's file and its size, by its `HostResource`; no file if it begins empty.
fn disk(
    envelope: Node<'_, '_>,
    resource: &str,
    what: &str,
) -> Result<(Option<Reference>, Option<u64>), Fault> {
    let bad = || damaged(what, format!("no disk of it is called {:?}", crate::machine::shown(resource)));
    let resource_path = resource.strip_prefix("ovf:").unwrap_or(resource);
    if let Some(id) = resource_path.strip_prefix("/file/") {
        return Ok((Some(file(envelope, id, what)?), None));
    }
    let id = resource_path.strip_prefix("/disk/").ok_or_else(bad)?;
    let section = child(envelope, "DiskSection").ok_or_else(bad)?;
    let disk =
        children(section, "Disk").find(|node| attribute(*node, "diskId") == Some(id)).ok_or_else(bad)?;
    if attribute(disk, "parentRef").is_some() {
        let fix = "export the machine without snapshots, or as clones of its disks";
        return Err(unsupported(what, format!("its disk {id:?} has only what differs from another"), fix));
    }
    let size = capacity(disk).map_err(|why| damaged(what, format!("its disk {id:?} {why}")))?;
    match attribute(disk, "fileRef") {
        Some(id) => Ok((Some(file(envelope, id, what)?), size)),
        None => Ok((None, size)),
    }
}

/// A disk's size; a property of the package's user may stand in its place.
fn capacity(disk: Node<'_, '_>) -> Result<Option<u64>, String> {
    let Some(capacity) = attribute(disk, "capacity").filter(|text| !text.starts_with("${")) else {
        return Ok(None);
    };
    let units = attribute(disk, "capacityAllocationUnits").unwrap_or("byte");
    let count: Option<u64> = capacity.trim().parse().ok();
    let bytes = count.zip(unit(units)).and_then(|(count, unit)| count.checked_mul(unit));
    match bytes {
        Some(bytes) if bytes > 0 && bytes <= DISK_MAX => Ok(Some(bytes)),
        _ => Err(format!("cannot have {capacity:?} of {units:?}")),
    }
}

/// A file of the package.
fn file(envelope: Node<'_, '_>, id: &str, what: &str) -> Result<Reference, Fault> {
    let references = child(envelope, "References");
    let found = references
        .and_then(|all| children(all, "File").find(|node| attribute(*node, "id") == Some(id)))
        .ok_or_else(|| damaged(what, format!("it names no file {:?}", crate::machine::shown(id))))?;
    let href = attribute(found, "href")
        .ok_or_else(|| damaged(what, format!("its file {:?} has no name", crate::machine::shown(id))))?;
    if attribute(found, "chunkSize").is_some() {
        let fix = "join its pieces, and take ovf:chunkSize out of the description";
        return Err(unsupported(what, format!("its file {href:?} is in pieces"), fix));
    }
    let gzip = match attribute(found, "compression").unwrap_or_default() {
        "" | "identity" => false,
        "gzip" => true,
        other => {
            let why = format!("its file {href:?} is compressed by {other:?}");
            return Err(unsupported(what, why, "write it with gzip, or without compression"));
        }
    };
    let file = local(href, what)?;
    let bytes = attribute(found, "size").and_then(|size| size.parse().ok());
    Ok(Reference { file, bytes, gzip })
}

/// A name that means a file of the package, and nothing outside it.
fn local(href: &str, what: &str) -> Result<String, Fault> {
    if href.contains("://") {
        let fix = "fetch that file, put it beside the description, and name it there";
        return Err(unsupported(what, format!("its file is at {:?}", crate::machine::shown(href)), fix));
    }
    let href = href.strip_prefix("file:").unwrap_or(href);
    let name = unescape(href);
    let leads_out = name.starts_with('/') || name.contains(['\\', '\0']);
    if name.is_empty() || leads_out || name.split('/').any(|part| part == "..") {
        let why = format!("its file {:?} is outside the package", crate::machine::shown(href));
        return Err(damaged(what, why));
    }
    Ok(name.strip_prefix("./").unwrap_or(&name).to_string())
}

/// A reference's characters that are written as `%20` (RFC 3986 §2.1).
fn unescape(href: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), href.as_bytes());
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = behind.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Devices that a machine of ours does not have.
fn leave_devices(items: &[Item<'_, '_>], machine: &mut Machine) {
    let mut cards = Vec::new();
    for item in items {
        let label = item.label();
        match item.kind {
            resource::ETHERNET => {
                let on = item.text("Connection").map_or_else(String::new, |name| format!(", on {name:?}"));
                cards.push(format!("{label}{on}"));
            }
            resource::CD | resource::DVD => {
                let full = item.text("HostResource").is_some();
                machine.leave(format!("CD drive: {label}{}", if full { ", with a disc in it" } else { "" }));
            }
            resource::FLOPPY => machine.leave(format!("floppy drive: {label}")),
            resource::SOUND => machine.leave(format!("sound card: {label}")),
            resource::USB => machine.leave(format!("USB: {label}")),
            resource::SERIAL => {
                machine.leave(format!("serial port: {label}; the first is the console anyway"))
            }
            resource::PARALLEL => machine.leave(format!("parallel port: {label}")),
            resource::GRAPHICS => machine.leave(format!("display: {label}; the console is serial")),
            _ => {}
        }
    }
    machine.leave_cards(&cards);
}

/// What programs say besides in ways of their own: VMware in `vmw:Config`, VirtualBox in `vbox:Machine`.
fn leave_rest(envelope: Node<'_, '_>, system: Node<'_, '_>, machine: &mut Machine) {
    let is = |node: Node<'_, '_>, name: &str, value: &str| {
        attribute(node, name).is_some_and(|found| found.eq_ignore_ascii_case(value))
    };
    for node in system.descendants().filter(Node::is_element) {
        match node.tag_name().name() {
            "Config" | "ExtraConfig" => {
                let key = attribute(node, "key").unwrap_or_default().to_ascii_lowercase();
                if key == "firmware" && is(node, "value", "efi") {
                    machine.leave("firmware: UEFI; its kernel is booted directly");
                }
                if key.ends_with("enable3dsupport") && is(node, "value", "true") {
                    machine.leave("3D graphics");
                }
                if key.contains("secureboot") && is(node, "value", "true") {
                    machine.leave("Secure Boot");
                }
            }
            "Firmware" if attribute(node, "type").is_some_and(|kind| kind.starts_with("EFI")) => {
                machine.leave("firmware: UEFI; its kernel is booted directly");
            }
            "Display" if is(node, "accelerate3D", "true") => machine.leave("3D graphics"),
            "TrustedPlatformModule" if !is(node, "type", "None") => machine.leave("TPM"),
            "Snapshot" => machine.leave("snapshots of the source: its present state is taken"),
            "ProductSection" if children(node, "Property").next().is_some() => machine.leave(
                "properties of the package (ProductSection): their values are not asked for, and no environment is made of them",
            ),
            _ => {}
        }
    }
    if child(envelope, "EulaSection").or_else(|| child(system, "EulaSection")).is_some() {
        machine.leave("a licence (EulaSection): read it in the description");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ovf(extra: &str, items: &str) -> String {
        format!(
            r#"<?xml version="1.0"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="r" xmlns:vmw="v">
            <References><File ovf:id="f1" ovf:href="a%20b.vmdk" ovf:size="77"/><File ovf:id="f2" ovf:href="c.gz" ovf:compression="gzip"/>{extra}</References>
            <DiskSection><Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="3" ovf:capacityAllocationUnits="byte * 2^30"/>
            <Disk ovf:diskId="d2" ovf:fileRef="f2" ovf:capacity="1024"/><Disk ovf:diskId="d3" ovf:capacity="2048"/><Disk ovf:diskId="d4" ovf:fileRef="f4"/></DiskSection>
            <VirtualSystem ovf:id="vm"><Name>box</Name><VirtualHardwareSection>
            <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
            <Item><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>1</rasd:VirtualQuantity><rasd:AllocationUnits>byte * 2^30</rasd:AllocationUnits></Item>
            <Item ovf:bound="max"><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>9</rasd:VirtualQuantity></Item>
            <Item ovf:configuration="big"><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>9</rasd:VirtualQuantity></Item>
            <Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceType>20</rasd:ResourceType></Item>
            <Item><rasd:InstanceID>4</rasd:InstanceID><rasd:ResourceType>6</rasd:ResourceType></Item>{items}
            <vmw:Config vmw:key="firmware" vmw:value="efi"/></VirtualHardwareSection></VirtualSystem></Envelope>"#
        )
    }

    fn drive(parent: &str, address: &str, resource: &str) -> String {
        format!(
            "<Item><rasd:AddressOnParent>{address}</rasd:AddressOnParent><rasd:HostResource>{resource}</rasd:HostResource>\
             <rasd:Parent>{parent}</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>"
        )
    }

    #[test]
    fn a_machine_is_read_in_the_order_of_its_controllers() {
        let items = [
            drive("4", "0", "ovf:/disk/d1"),
            drive("3", "1", "/disk/d2"),
            drive("3", "0", "ovf:/disk/d3"),
            "<Item><rasd:ElementName>e0</rasd:ElementName><rasd:ResourceSubType>E1000</rasd:ResourceSubType><rasd:Connection>LAN</rasd:Connection><rasd:ResourceType>10</rasd:ResourceType></Item>".to_string(),
            "<Item><rasd:ElementName>ac97</rasd:ElementName><rasd:ResourceType>35</rasd:ResourceType></Item>".to_string(),
        ];
        let found = parse(&ovf("", &items.concat()), "x").unwrap();
        let machine = &found.machine;
        assert_eq!(
            (machine.name.as_deref(), machine.memory_mib, machine.cpus),
            (Some("box"), Some(1024), Some(2))
        );
        assert_eq!(
            found.references,
            [
                Reference { file: "c.gz".into(), bytes: None, gzip: true },
                Reference { file: "a b.vmdk".into(), bytes: Some(77), gzip: false }
            ]
        );
        assert_eq!([machine.disks[0].size, machine.disks[1].size], [Some(1024), Some(3 << 30)]);
        for part in ["UEFI", "sound card: ac97", "card 1: e0 (E1000), on \"LAN\"", "an empty disk"] {
            assert!(machine.left.iter().any(|item| item.contains(part)), "{part}: {:?}", machine.left);
        }
    }

    #[test]
    fn what_leads_out_of_the_package_is_refused() {
        for href in
            ["../x", "a/../../x", "/etc/passwd", "http://x/y", "", "a%2f..%2f..%2fx", "%2Fetc/x", "file:///x"]
        {
            let extra = format!("<File ovf:id=\"f4\" ovf:href=\"{href}\"/>");
            let text = ovf(&extra, &drive("3", "0", "ovf:/disk/d4"));
            assert!(parse(&text, "x").is_err(), "{href}");
        }
        for (extra, resource) in [
            ("", "ovf:/disk/d4"),
            ("", "ovf:/disk/none"),
            ("", "d1"),
            ("<File ovf:id='f4' ovf:href='x' ovf:compression='lzma'/>", "ovf:/disk/d4"),
            ("<File ovf:id='f4' ovf:href='x' ovf:chunkSize='5'/>", "ovf:/disk/d4"),
        ] {
            assert!(parse(&ovf(extra, &drive("3", "0", resource)), "x").is_err(), "{extra} {resource}");
        }
        assert!(parse(&ovf("", ""), "x").unwrap_err().message.contains("no disks"));
        let lies = ovf("", &drive("3", "0", "ovf:/disk/d1")).replace("2^30", "2^64");
        assert!(parse(&lies, "x").unwrap_err().message.contains("cannot have"));
        let two = ovf("", "").replace("</Envelope>", "<VirtualSystem/></Envelope>");
        assert!(parse(&two, "x").unwrap_err().message.contains("2 machines"));
    }

    #[test]
    fn units_of_all_ages() {
        for (words, bytes) in [
            ("byte * 2^20", Some(1 << 20)),
            ("byte*10^3", Some(1000)),
            ("MegaBytes", Some(1 << 20)),
            ("GB", Some(1 << 30)),
            ("byte", Some(1)),
            ("byte * 2^99", None),
            ("hertz * 10^6", None),
            ("byte * 2^", None),
        ] {
            assert_eq!(unit(words), bytes, "{words}");
        }
    }
}
