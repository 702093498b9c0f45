//! Layers, one over the other (OCI image specification, "Image Layer Filesystem Changeset", "Applying Changesets").
//!
//! Where the specification is silent we do what `umoci unpack` does: a directory over a directory keeps its names and takes the new
//! attributes, anything else is replaced whole; what is on the way to an entry and is a symbolic link is followed inside the
//! root; what is on the way and is missing becomes a directory of root's with mode 0755.
use crate::fault::{damaged, excessive};
use crate::layer::{Attributes, Entry, Kind, Layer};
use crate::path::{shown, split};
use crate::tree::{Content, Dentry, Inode, ROOT, Tree};
use std::collections::{BTreeMap, HashSet};
use viv_model::Fault;

/// Files and directories of an image at most, those counted that a higher layer hides: archives name directories in far less room than
/// these take in memory.
const INODES_MAX: usize = 2_000_000;

impl Tree {
    /// Applies layers from the lowest to the highest.
    pub fn merge(layers: &[Layer]) -> Result<Tree, Fault> {
        Tree::merge_within(layers, INODES_MAX)
    }

    fn merge_within(layers: &[Layer], inodes_max: usize) -> Result<Tree, Fault> {
        let tree = Tree { inodes: vec![directory(ROOT)], layers: layers.len() };
        let mut merge = Merge { tree, inodes_max, layer: 0, cleared: HashSet::new() };
        for (at, layer) in layers.iter().enumerate() {
            (merge.layer, merge.cleared) = (at, HashSet::new());
            for entry in &layer.entries {
                merge.apply(entry).map_err(|fault| Fault {
                    message: format!("{} (layer {} of {})", fault.message, at + 1, layers.len()),
                    ..fault
                })?;
            }
        }
        Ok(merge.tree.compacted())
    }

    /// Only what has a name, in the order of [`Tree::inodes`], with links counted.
    fn compacted(self) -> Tree {
        let mut old: Vec<Option<Inode>> = self.inodes.into_iter().map(Some).collect();
        let mut places: Vec<Option<usize>> = vec![None; old.len()];
        let mut inodes: Vec<Inode> = old.first_mut().and_then(Option::take).into_iter().collect();
        let mut at = 0;
        while at < inodes.len() {
            let mut names = match inodes.get_mut(at).map(|inode| &mut inode.content) {
                Some(Content::Directory { names, .. }) => std::mem::take(names),
                _ => BTreeMap::new(),
            };
            let mut directories = 0;
            for dentry in names.values_mut() {
                let Some(place) = places.get_mut(dentry.inode) else { continue };
                if let Some(mut inode) = old.get_mut(dentry.inode).and_then(Option::take) {
                    if let Content::Directory { parent, .. } = &mut inode.content {
                        *parent = at;
                        directories += 1;
                    }
                    *place = Some(inodes.len());
                    inodes.push(Inode { links: 0, ..inode });
                }
                dentry.inode = place.unwrap_or(ROOT);
                if let Some(inode) = inodes.get_mut(dentry.inode) {
                    inode.links += 1;
                }
            }
            if let Some(Inode { content: Content::Directory { names: empty, .. }, links, .. }) =
                inodes.get_mut(at)
            {
                *empty = names;
                *links = 2 + directories;
            }
            at += 1;
        }
        Tree { inodes, layers: self.layers }
    }
}

/// Layers on their way into a tree.
struct Merge {
    tree: Tree,
    /// Files and directories that it may have.
    inodes_max: usize,
    /// Which of them is applied.
    layer: usize,
    /// Directories in which nothing of lower layers is any more.
    cleared: HashSet<usize>,
}

impl Merge {
    fn apply(&mut self, entry: &Entry) -> Result<(), Fault> {
        let (parent, name) = split(&entry.path);
        match &entry.kind {
            Kind::Opaque => {
                let walk = self.tree.walk(&entry.path)?;
                if walk.missing.is_empty() {
                    self.hide(walk.last());
                }
                return Ok(());
            }
            Kind::Whiteout => {
                let walk = self.tree.walk(parent)?;
                if walk.missing.is_empty() {
                    self.white_out(walk.last(), name);
                }
                return Ok(());
            }
            _ => {}
        }
        if name.is_empty() {
            if let Some(root) = self.tree.inodes.get_mut(ROOT) {
                root.attributes = entry.attributes.clone();
            }
            return Ok(());
        }
        // Before anything is replaced that is on the way to it.
        let target = match &entry.kind {
            Kind::Hardlink(target) => Some(self.target(target, &entry.path)?),
            _ => None,
        };
        let parent = self.make_parent(parent)?;
        let old = self.tree.child(parent, name);
        let inode = match (target, self.content(&entry.kind, parent)) {
            (Some(target), _) => target,
            (None, Some(content)) => {
                let both = matches!(content, Content::Directory { .. });
                let old = old.and_then(|old| Some((old.inode, self.tree.inodes.get_mut(old.inode)?)));
                match old {
                    Some((at, Inode { attributes, content: Content::Directory { .. }, .. })) if both => {
                        attributes.clone_from(&entry.attributes);
                        at
                    }
                    _ => self.add(Inode { attributes: entry.attributes.clone(), content, links: 0 })?,
                }
            }
            (None, None) => return Ok(()),
        };
        self.name(parent, name, Dentry { inode, layer: self.layer });
        Ok(())
    }

    /// What the entry brings; a hard link and a whiteout bring nothing.
    fn content(&self, kind: &Kind, parent: usize) -> Option<Content> {
        Some(match kind {
            Kind::File { size, extents } => {
                Content::File { layer: self.layer, size: *size, extents: extents.clone() }
            }
            Kind::Directory => Content::Directory { parent, names: BTreeMap::new() },
            Kind::Symlink(target) => Content::Symlink(target.clone()),
            Kind::Device { block, major, minor } => {
                Content::Device { block: *block, major: *major, minor: *minor }
            }
            Kind::Fifo => Content::Fifo,
            Kind::Hardlink(_) | Kind::Whiteout | Kind::Opaque => return None,
        })
    }

    /// What a hard link names: its last part is not followed.
    fn target(&self, target: &[u8], path: &[u8]) -> Result<usize, Fault> {
        let (parent, name) = split(target);
        let walk = self.tree.walk(parent)?;
        let found = if walk.missing.is_empty() { self.tree.child(walk.last(), name) } else { None };
        match found.and_then(|dentry| Some((dentry.inode, self.tree.inodes.get(dentry.inode)?))) {
            Some((_, Inode { content: Content::Directory { .. }, .. })) => Err(damaged(format!(
                "{} is a hard link to {}, which is a directory",
                shown(path),
                shown(target)
            ))),
            Some((inode, _)) => Ok(inode),
            None => Err(damaged(format!(
                "{} is a hard link to {}, which is not there",
                shown(path),
                shown(target)
            ))),
        }
    }

    /// The directory that `path` leads to, made where it is missing. All on the way belongs to the layer from now on.
    fn make_parent(&mut self, path: &[u8]) -> Result<usize, Fault> {
        let walk = self.tree.walk(path)?;
        let mut parent = ROOT;
        for (name, inode) in walk.directories.into_iter().skip(1) {
            self.name(parent, &name, Dentry { inode, layer: self.layer });
            parent = inode;
        }
        for name in walk.missing {
            let inode = self.add(directory(parent))?;
            self.name(parent, &name, Dentry { inode, layer: self.layer });
            parent = inode;
        }
        Ok(parent)
    }

    fn add(&mut self, inode: Inode) -> Result<usize, Fault> {
        if self.tree.inodes.len() >= self.inodes_max {
            return Err(excessive(format!("its files and directories are more than {}", self.inodes_max)));
        }
        self.tree.inodes.push(inode);
        Ok(self.tree.inodes.len() - 1)
    }

    fn names(&mut self, directory: usize) -> Option<&mut BTreeMap<Vec<u8>, Dentry>> {
        match &mut self.tree.inodes.get_mut(directory)?.content {
            Content::Directory { names, .. } => Some(names),
            _ => None,
        }
    }

    fn name(&mut self, parent: usize, name: &[u8], dentry: Dentry) {
        let Some(names) = self.names(parent) else { return };
        match names.get_mut(name) {
            Some(old) => *old = dentry,
            None => {
                names.insert(name.to_vec(), dentry);
            }
        }
    }

    /// Removes what lower layers have under a name; what this layer has named stays, in whichever order they come.
    fn white_out(&mut self, parent: usize, name: &[u8]) {
        match self.tree.child(parent, name) {
            Some(dentry) if dentry.layer == self.layer => self.hide(dentry.inode),
            _ => {
                if let Some(names) = self.names(parent) {
                    names.remove(name);
                }
            }
        }
    }

    /// Removes what lower layers have in a directory.
    fn hide(&mut self, directory: usize) {
        let (mut queue, layer) = (vec![directory], self.layer);
        while let Some(directory) = queue.pop() {
            if self.cleared.contains(&directory) {
                continue;
            }
            if let Some(names) = self.names(directory) {
                names.retain(|_, dentry| dentry.layer == layer);
                queue.extend(names.values().map(|dentry| dentry.inode));
                self.cleared.insert(directory);
            }
        }
    }
}

/// A directory that no layer describes.
fn directory(parent: usize) -> Inode {
    let attributes = Attributes { mode: 0o755, ..Attributes::default() };
    Inode { attributes, content: Content::Directory { parent, names: BTreeMap::new() }, links: 2 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::Extent;
    use proptest::prelude::*;

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry { path: path.into(), attributes: Attributes::default(), kind }
    }

    /// A file that is known by its size.
    fn file(path: &str, size: u64) -> Entry {
        entry(path, Kind::File { size, extents: vec![Extent { from: 0, at: 0, blocks: 1 }] })
    }

    fn layer(entries: impl IntoIterator<Item = Entry>) -> Layer {
        Layer { entries: entries.into_iter().collect(), data_blocks: 1 }
    }

    fn size(tree: &Tree, path: &str) -> Option<(usize, u64)> {
        match &tree.inodes()[tree.resolve(path).ok()?].content {
            Content::File { layer, size, .. } => Some((*layer, *size)),
            _ => None,
        }
    }

    /// All paths, with the size of files.
    fn shape(tree: &Tree) -> BTreeMap<String, Option<u64>> {
        let mut paths = BTreeMap::new();
        let mut queue = vec![(String::new(), ROOT)];
        while let Some((path, inode)) = queue.pop() {
            if let Content::Directory { names, .. } = &tree.inodes()[inode].content {
                queue.extend(names.iter().map(|(name, dentry)| {
                    (format!("{path}/{}", String::from_utf8_lossy(name)), dentry.inode)
                }));
            }
            let size = match &tree.inodes()[inode].content {
                Content::File { size, .. } => Some(*size),
                _ => None,
            };
            paths.insert(path, size);
        }
        paths
    }

    #[test]
    fn links_are_followed_inside_the_root() {
        let link = |path: &str, target: &str| entry(path, Kind::Symlink(target.into()));
        let lower = layer([
            entry("usr/bin", Kind::Directory),
            link("bin", "usr/bin"),
            link("out", "../../../../etc"),
            link("abs", "/usr/./bin/.."),
            link("new", "/made/here/../there"),
        ]);
        let upper = layer([file("bin/a", 1), file("out/b", 2), file("abs/c", 3), file("new/d", 4)]);
        let tree = Tree::merge(&[lower, upper]).unwrap();
        for (path, expected) in
            [("usr/bin/a", 1), ("etc/b", 2), ("usr/c", 3), ("made/there/d", 4), ("/bin/a", 1)]
        {
            assert_eq!(size(&tree, path), Some((1, expected)), "{path}");
        }
        assert!(tree.resolve("/made/here").is_err());
        let ring = layer([link("a", "b"), link("b", "a"), file("a/x", 1)]);
        let fault = Tree::merge(&[ring]).unwrap_err();
        assert!(fault.message.contains("too many symbolic links"), "{fault}");
    }

    #[test]
    fn a_hard_link_names_the_file_of_below() {
        let lower = layer([file("a", 1), file("gone", 2), entry("dir", Kind::Directory)]);
        let upper = layer([
            entry("b", Kind::Hardlink("a".into())),
            entry("kept", Kind::Hardlink("gone".into())),
            entry("gone", Kind::Whiteout),
            file("a", 3),
        ]);
        let tree = Tree::merge(&[lower.clone(), upper]).unwrap();
        assert_eq!(size(&tree, "b"), Some((0, 1)));
        assert_eq!(size(&tree, "kept"), Some((0, 2)));
        assert_eq!(size(&tree, "a"), Some((1, 3)), "a name that is replaced leaves the others as they are");
        assert!(tree.resolve("gone").is_err());
        for (target, why) in
            [("missing", "not there"), ("dir", "directory"), ("b", "not there"), ("a/x", "not there")]
        {
            let link = layer([entry("b", Kind::Hardlink(target.into()))]);
            let fault = Tree::merge(&[lower.clone(), link]).unwrap_err();
            assert!(
                fault.message.contains(why) && fault.message.contains("layer 2 of 2"),
                "{target}: {fault}"
            );
        }
    }

    #[test]
    fn directories_take_the_last_attributes_and_keep_their_names() {
        let with = |path: &str, mode, kind| Entry {
            attributes: Attributes { mode, ..Attributes::default() },
            ..entry(path, kind)
        };
        let lower =
            layer([with("a", 0o700, Kind::Directory), file("a/b", 1), with("", 0o711, Kind::Directory)]);
        let upper = layer([with("a", 0o751, Kind::Directory), file("c/d", 1)]);
        let tree = Tree::merge(&[lower, upper]).unwrap();
        let mode = |path: &str| tree.inodes()[tree.resolve(path).unwrap()].attributes.mode;
        assert_eq!((mode("/"), mode("a"), mode("c")), (0o711, 0o751, 0o755));
        assert_eq!(size(&tree, "a/b"), Some((0, 1)));
        assert_eq!(tree.inodes()[ROOT].links, 4);
    }

    #[test]
    fn a_tree_is_no_deeper_than_linux_can_walk() {
        // Each link leads to the end of what the one before made: a path longer than any.
        let step = "d/".repeat(1000);
        let mut entries = Vec::new();
        let mut at = String::new();
        for number in 0..6 {
            entries.push(file(&format!("{at}{step}f"), 1));
            entries.push(entry(&format!("l{number}"), Kind::Symlink(format!("{at}{step}").into_bytes())));
            at = format!("l{number}/");
        }
        let fault = Tree::merge(&[layer(entries)]).unwrap_err();
        assert!(fault.message.contains("names on its way"), "{fault}");
    }

    #[test]
    fn few_entries_make_no_end_of_directories() {
        let layers = [layer((0..11).map(|number| file(&format!("{number}/{}f", "d/".repeat(2000)), 1)))];
        let fault = Tree::merge_within(&layers, 20_000).unwrap_err();
        assert_eq!(fault.kind, viv_model::Kind::NoCapacity, "{fault}");
    }

    #[test]
    fn whiteouts_without_end_end() {
        // Each would look through all that the layer brings.
        let brought = (0..30_000).map(|number| file(&format!("a/{number}"), 1));
        let hidden = (0..30_000).map(|_| entry("a", Kind::Opaque));
        let tree = Tree::merge(&[layer([file("a/b", 2)]), layer(brought.chain(hidden))]).unwrap();
        assert!(tree.resolve("a/b").is_err() && tree.resolve("a/29999").is_ok());
    }

    /// What the specification says, without an order inside a layer: first what is hidden goes, then what is brought comes.
    fn reference(layers: &[Layer]) -> BTreeMap<String, Option<u64>> {
        let mut paths: BTreeMap<String, Option<u64>> = BTreeMap::from([(String::new(), None)]);
        for layer in layers {
            let text = |entry: &Entry| format!("/{}", String::from_utf8_lossy(&entry.path));
            for entry in &layer.entries {
                let path = text(entry);
                match entry.kind {
                    Kind::Whiteout => {
                        paths.retain(|at, _| *at != path && !at.starts_with(&format!("{path}/")))
                    }
                    Kind::Opaque => paths.retain(|at, _| !at.starts_with(&format!("{path}/"))),
                    _ => {}
                }
            }
            for entry in &layer.entries {
                let (path, size) = match entry.kind {
                    Kind::File { size, .. } => (text(entry), Some(size)),
                    Kind::Directory => (text(entry), None),
                    _ => continue,
                };
                let parents = path.match_indices('/').map(|(at, _)| path[..at].to_string());
                for parent in parents {
                    paths.insert(parent, None);
                }
                if size.is_some() {
                    paths.retain(|at, _| !at.starts_with(&format!("{path}/")));
                }
                paths.insert(path, size);
            }
        }
        paths
    }

    fn any_layer() -> impl Strategy<Value = Layer> {
        let path = proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c")], 1..4);
        let kind = prop_oneof![
            3 => (0u64..1000).prop_map(|size| Kind::File { size, extents: vec![] }),
            2 => Just(Kind::Directory),
            2 => Just(Kind::Whiteout),
            1 => Just(Kind::Opaque),
        ];
        let entries = proptest::collection::vec((path, kind), 0..12);
        entries
            .prop_map(|entries| layer(entries.into_iter().map(|(path, kind)| entry(&path.join("/"), kind))))
    }

    proptest! {
        /// OCI image specification, layer.md, "Applying Changesets", "Whiteouts".
        #[test]
        fn layers_are_applied_as_specified(layers in proptest::collection::vec(any_layer(), 1..5)) {
            let tree = Tree::merge(&layers).unwrap();
            prop_assert_eq!(shape(&tree), reference(&layers));
            for (at, inode) in tree.inodes().iter().enumerate() {
                if let Content::Directory { names, .. } = &inode.content {
                    for dentry in names.values() {
                        let child = &tree.inodes()[dentry.inode];
                        if let Content::Directory { parent, .. } = child.content {
                            prop_assert_eq!(parent, at);
                        } else {
                            prop_assert_eq!(child.links, 1);
                        }
                    }
                }
            }
        }
    }
}
