//! Nodes: files that stay the same files, whatever their names become, with few descriptors.
use super::*;
use crate::nodes::Nodes;
use std::ffi::CString;

fn nodes(place: &Place, open_max: usize) -> Nodes {
    Nodes::new(place.directory(false).name().unwrap(), open_max).unwrap()
}

fn name(text: &str) -> CString {
    CString::new(text).unwrap()
}

/// The number that a file has on its file system.
fn inode(nodes: &mut Nodes, node: u64) -> Result<u64, Errno> {
    let file = nodes.file(node)?;
    crate::nodes::stat(&*file).map(|stat| stat.stx_ino)
}

fn inode_of(place: &Place, path: &str) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(place.inside().join(path)).unwrap().ino()
}

#[test]
fn many_files_in_a_deep_tree_need_few_descriptors() {
    let place = Place::new();
    let mut nodes = nodes(&place, 5);
    let (mut parent, mut path, mut all) = (ROOT, String::new(), Vec::new());
    for depth in 0..20 {
        for n in 0..5 {
            fs::write(place.inside().join(format!("{path}file{n}")), "").unwrap();
            let (node, _) = nodes.look_up(parent, &name(&format!("file{n}"))).unwrap();
            all.push((node, format!("{path}file{n}")));
        }
        path.push_str(&format!("d{depth}/"));
        fs::create_dir(place.inside().join(&path)).unwrap();
        parent = nodes.look_up(parent, &name(&format!("d{depth}"))).unwrap().0;
        all.push((parent, path.clone()));
    }
    assert_eq!(nodes.count(), (120, 5));
    for _ in 0..2 {
        for (node, path) in all.iter().rev() {
            assert_eq!(inode(&mut nodes, *node), Ok(inode_of(&place, path)), "{path}");
        }
    }
    for (node, _) in &all {
        nodes.forget(*node, 1);
    }
    assert_eq!(nodes.count(), (0, 0));
}

#[test]
fn a_file_that_lost_its_name_keeps_its_descriptor() {
    let place = Place::new();
    let mut nodes = nodes(&place, 3);
    for n in 0..2 {
        fs::write(place.inside().join(format!("gone{n}")), "").unwrap();
    }
    let gone: Vec<u64> = (0..2).map(|n| nodes.look_up(ROOT, &name(&format!("gone{n}"))).unwrap().0).collect();
    let before: Vec<_> = gone.iter().map(|node| inode(&mut nodes, *node)).collect();
    fs::remove_file(place.inside().join("gone0")).unwrap();
    fs::rename(place.inside().join("gone1"), place.inside().join("elsewhere")).unwrap();
    fs::write(place.inside().join("gone1"), "another").unwrap();
    for n in 0..20 {
        fs::write(place.inside().join(format!("file{n}")), "").unwrap();
        nodes.look_up(ROOT, &name(&format!("file{n}"))).unwrap();
    }
    let after: Vec<_> = gone.iter().map(|node| inode(&mut nodes, *node)).collect();
    assert_eq!(before, after);
    // Were all like that, there would be an error in time.
    fs::write(place.inside().join("third"), "").unwrap();
    nodes.look_up(ROOT, &name("third")).unwrap();
    fs::remove_file(place.inside().join("third")).unwrap();
    fs::write(place.inside().join("fourth"), "").unwrap();
    assert_eq!(nodes.look_up(ROOT, &name("fourth")).err(), Some(Errno::NFILE));
}

#[test]
fn a_closed_file_is_found_under_the_name_that_the_guest_gave_it() {
    let place = Place::new();
    let mut nodes = nodes(&place, 2);
    for n in 0..6 {
        fs::create_dir(place.inside().join(format!("d{n}"))).unwrap();
        fs::write(place.inside().join(format!("d{n}/file")), "").unwrap();
    }
    let known: Vec<(u64, u64)> = (0..6)
        .map(|n| {
            let directory = nodes.look_up(ROOT, &name(&format!("d{n}"))).unwrap().0;
            (directory, nodes.look_up(directory, &name("file")).unwrap().0)
        })
        .collect();
    // By the guest: it is followed. By somebody else: it is another file, or none.
    fs::rename(place.inside().join("d0/file"), place.inside().join("d1/moved")).unwrap();
    nodes.renamed(known[1].0, &name("moved"));
    assert_eq!(inode(&mut nodes, known[0].1), Ok(inode_of(&place, "d1/moved")));
    fs::rename(place.inside().join("d2/file"), place.inside().join("d2/hidden")).unwrap();
    assert_eq!(inode(&mut nodes, known[2].1), Err(Errno::STALE));
    fs::write(place.inside().join("d2/file"), "another").unwrap();
    assert_eq!(inode(&mut nodes, known[2].1), Err(Errno::STALE));
}

#[test]
fn forgetting_is_counted() {
    let place = Place::new();
    fs::write(place.inside().join("file"), "").unwrap();
    fs::hard_link(place.inside().join("file"), place.inside().join("same")).unwrap();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    let node = look_up(&mut session, ROOT, "file").unwrap();
    assert_eq!(look_up(&mut session, ROOT, "same"), Some(node), "two names, one node");
    let mut reply = Vec::new();
    session.answer(&request(opcode::FORGET, node, &longs(&[1])), ROOM, &mut reply);
    assert!(reply.is_empty());
    assert!(ask(&mut session, opcode::GETATTR, node, &[0; 16]).is_ok());
    let batch = [body(&[2, 0], &[]), longs(&[ROOT, 9, node, 7])].concat();
    session.answer(&request(opcode::BATCH_FORGET, 0, &batch), ROOM, &mut reply);
    assert!(reply.is_empty());
    assert_eq!(ask(&mut session, opcode::GETATTR, node, &[0; 16]), Err(Errno::STALE));
    assert!(ask(&mut session, opcode::GETATTR, ROOT, &[0; 16]).is_ok(), "the root is never forgotten");
}

#[test]
fn rename_link_and_remove_do_what_they_say() {
    let place = Place::new();
    let at = |path: &str| place.inside().join(path);
    fs::create_dir(at("sub")).unwrap();
    fs::write(at("a"), "a").unwrap();
    fs::write(at("b"), "b").unwrap();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    let sub = look_up(&mut session, ROOT, "sub").unwrap();
    let a = look_up(&mut session, ROOT, "a").unwrap();
    let rename = |flags: u64, from: &str, to: u64, name: &str| {
        [longs(&[to, flags]), body(&[], &[from, name])].concat()
    };
    let keep = ask(&mut session, opcode::RENAME2, ROOT, &rename(1, "a", ROOT, "b"));
    assert_eq!(keep, Err(Errno::EXIST));
    ask(&mut session, opcode::RENAME2, ROOT, &rename(2, "a", ROOT, "b")).unwrap();
    assert_eq!(fs::read(at("a")).unwrap(), b"b");
    assert_eq!(ask(&mut session, opcode::RENAME2, ROOT, &rename(4, "a", ROOT, "b")), Err(Errno::INVAL));
    ask(&mut session, opcode::RENAME, ROOT, &[longs(&[sub]), body(&[], &["b", "c"])].concat()).unwrap();
    assert_eq!(look_up(&mut session, sub, "c"), Some(a), "the same file");
    let entry =
        ask(&mut session, opcode::LINK, ROOT, &[longs(&[a]), body(&[], &["again"])].concat()).unwrap();
    assert_eq!((u64_at(&entry, 0), u32_at(&entry, 40 + 64)), (a, 2));
    let linked = ask(&mut session, opcode::LINK, ROOT, &[longs(&[sub]), body(&[], &["dir"])].concat());
    assert_eq!(linked, Err(Errno::PERM));
    assert_eq!(ask(&mut session, opcode::RMDIR, ROOT, &body(&[], &["sub"])), Err(Errno::NOTEMPTY));
    ask(&mut session, opcode::UNLINK, sub, &body(&[], &["c"])).unwrap();
    ask(&mut session, opcode::RMDIR, ROOT, &body(&[], &["sub"])).unwrap();
    ask(&mut session, opcode::SYMLINK, ROOT, &body(&[], &["link", "/anywhere/at all"])).unwrap();
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("/anywhere/at all"));
    assert_eq!(fs::read(at("again")).unwrap(), b"a");
}

#[test]
fn descriptors_are_closed_also_when_all_were_just_used() {
    let place = Place::new();
    let mut nodes = nodes(&place, 300);
    for round in 0..3 {
        for n in 0..400 {
            let text = format!("file{round}-{n}");
            fs::write(place.inside().join(&text), "").unwrap();
            let (node, _) = nodes.look_up(ROOT, &name(&text)).unwrap();
            nodes.file(node).unwrap();
            // As when the guest forgets most of what it has seen.
            if n % 3 != 0 {
                nodes.forget(node, 1);
            }
        }
    }
    assert!(nodes.count().1 <= 300);
}
