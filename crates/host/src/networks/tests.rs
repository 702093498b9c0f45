use super::*;
use crate::store::conformance::record;

/// Networks below a directory of the test's own.
fn networks(test: &str) -> (Networks, PathBuf) {
    let root = std::env::temp_dir().join(format!("viv-networks-{test}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&root);
    let places = Places { state: root.clone(), data: root.join("data"), runtime: root.join("run") };
    fs::create_dir_all(places.networks()).unwrap();
    (Networks::new(&places, Box::new(|_, _| ())), root)
}

fn default() -> ProjectName {
    ProjectName::default()
}

fn ask(name: &str, subnet: Option<&str>) -> NetworkCreate {
    let subnet = subnet.map(|text| text.parse().unwrap());
    NetworkCreate { name: name.to_string(), subnet, ..NetworkCreate::default() }
}

fn member(id: &str, net: &str, address: Option<Ipv4Addr>) -> VmRecord {
    let mut member = record(id, id, 1);
    member.machine.nics = vec![NicSpec { net: net.parse().unwrap(), address, ..NicSpec::default() }];
    member
}

#[test]
fn a_network_is_made_found_again_and_removed_when_nobody_is_in_it() {
    let (networks, root) = networks("life");
    let web = networks.create(&default(), &ask("web", None)).unwrap().it;
    let db = networks.create(&default(), &ask("db", None)).unwrap().it;
    assert!(!web.subnet.overlaps(&db.subnet));
    assert_eq!(networks.find(&default(), "web").unwrap(), web);
    assert_eq!(networks.create(&default(), &ask("web", None)).unwrap_err().kind, Kind::Conflict);
    assert_eq!(networks.find(&default(), "cache").unwrap_err().kind, Kind::NotFound);
    let inside = [member("a1", "web", web.subnet.guests().next())];
    let shown = networks.list(|_| true, &inside).unwrap();
    assert_eq!(shown.iter().map(|network| network.spec.name.as_str()).collect::<Vec<_>>(), ["db", "web"]);
    assert_eq!((shown[1].vms.len(), shown[1].vms[0].connected, shown[1].pid), (1, false, None));
    let fault = networks.remove(&default(), "web", &inside).unwrap_err();
    assert!(fault.kind == Kind::Conflict && fault.message.contains("a1"), "{fault}");
    networks.remove(&default(), "web", &[]).unwrap();
    assert_eq!(networks.find(&default(), "web").unwrap_err().kind, Kind::NotFound);
    networks.create(&default(), &ask("web", None)).unwrap();
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn subnets_that_others_have_are_refused() {
    let (networks, root) = networks("subnets");
    networks.create(&default(), &ask("web", Some("10.77.1.0/24"))).unwrap();
    for subnet in ["10.77.1.128/25", "10.77.0.0/16", "10.0.2.0/24", "10.0.0.0/8"] {
        let fault = networks.create(&default(), &ask("db", Some(subnet))).unwrap_err();
        assert_eq!(fault.kind, Kind::Conflict, "{fault}");
    }
    // Each of the host's own.
    let routes = fs::read_to_string(ROUTES).unwrap_or_default();
    for subnet in
        routes.lines().skip(1).filter_map(route).filter(|subnet| (8..=28).contains(&subnet.prefix()))
    {
        let ask = NetworkCreate { subnet: Some(subnet), ..ask("db", None) };
        assert!(networks.create(&default(), &ask).is_err(), "{subnet}");
    }
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn a_route_of_the_host_is_a_subnet() {
    let line = "eth0\t000AA8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0";
    assert_eq!(route(line).unwrap().to_string(), "192.168.10.0/24");
    assert_eq!(route("eth0\t00000000\t010AA8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0"), None);
    assert_eq!(route("nonsense"), None);
}

#[test]
fn each_vm_has_an_address_of_its_own_until_none_is_left() {
    let (networks, root) = networks("addresses");
    let small = networks.create(&default(), &ask("small", Some("10.77.1.0/28"))).unwrap().it;
    let mut records = Vec::new();
    for expected in small.subnet.guests() {
        let mut next = member(&format!("vm{}", records.len()), "small", None);
        let nic = &mut next.machine.nics[0];
        networks.give_address(&default(), nic, &records).unwrap();
        assert_eq!(nic.address, Some(expected));
        records.push(next);
    }
    let mut one_more = NicSpec { net: NetKind::Named("small".to_string()), ..NicSpec::default() };
    let fault = networks.give_address(&default(), &mut one_more, &records).unwrap_err();
    assert!(fault.kind == Kind::NoCapacity && fault.message.contains("room for 11"), "{fault}");
    records.remove(3);
    networks.give_address(&default(), &mut one_more, &records).unwrap();
    assert_eq!(one_more.address, small.subnet.guests().nth(3));
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn an_isolated_network_publishes_nothing() {
    let (networks, root) = networks("isolated");
    networks.create(&default(), &NetworkCreate { isolated: true, ..ask("vault", None) }).unwrap();
    let ports = vec!["8080:80".parse().unwrap()];
    let mut nic = NicSpec { net: NetKind::Named("vault".to_string()), ports, ..NicSpec::default() };
    assert_eq!(networks.give_address(&default(), &mut nic, &[]).unwrap_err().kind, Kind::Usage);
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn a_network_is_of_one_project() {
    let (networks, root) = networks("projects");
    let acme: ProjectName = "acme".parse().unwrap();
    networks.create(&acme, &ask("web", None)).unwrap();
    // As one of a release before projects has it.
    networks.create(&default(), &ask("old", None)).unwrap();
    let text = fs::read_to_string(networks.root.join("old").join(RECORD)).unwrap();
    assert!(!text.contains("project"), "{text}");
    assert!(networks.find(&acme, "web").is_ok() && networks.find(&default(), "old").is_ok());
    let there = networks.find(&default(), "web").unwrap_err();
    let nowhere = networks.find(&default(), "wea").unwrap_err();
    assert_eq!(there.message.replace("web", "wea"), nowhere.message, "as if it were not there");
    let mut nic = NicSpec { net: NetKind::Named("web".to_string()), ..NicSpec::default() };
    assert_eq!(networks.give_address(&default(), &mut nic, &[]).unwrap_err().kind, Kind::NotFound);
    networks.give_address(&acme, &mut nic, &[]).unwrap();
    assert_eq!(networks.remove(&default(), "web", &[]).unwrap_err().kind, Kind::NotFound);
    let shown = networks.list(|project| *project == acme, &[]).unwrap();
    assert_eq!(shown.iter().map(|network| network.spec.name.as_str()).collect::<Vec<_>>(), ["web"]);
    fs::remove_dir_all(root).unwrap();
}
