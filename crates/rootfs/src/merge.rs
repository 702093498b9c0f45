//! Layers, one over the other (OCI image specification, "Image Layer Filesystem Changeset", "Applying Changesets").
//!
//! Where the specification is silent we do what `umoci unpack` does: a directory over a directory keeps its names and takes the new
//! attributes, anything else is replaced whole; what is on the way to an entry and is a symbolic link is followed inside the
//! root; what is on the way and is missing becomes a directory of root's with mode 0755.
use crate::fault::damaged;
use crate::layer::{Attributes, Entry, Kind, Layer};
use crate::path::{shown, split};
use crate::tree::{Content, Dentry, Inode, ROOT, Tree};
use std::collections::BTreeMap;
use viv_model::Fault;

impl Tree {
    /// Applies layers from the lowest to the highest.
    pub fn merge(layers: &[Layer]) -> Result<Tree, Fault> {
        let mut tree = Tree { inodes: vec![directory(ROOT)], layers: layers.len() };
        for (at, layer) in layers.iter().enumerate() {
            for entry in &layer.entries {
                tree.apply(entry, at).map_err(|fault| Fault {
                    message: format!("{} (layer {} of {})", fault.message, at + 1, layers.len()),
                    ..fault
                })?;
            }
        }
        Ok(tree.compacted())
    }

    fn apply(&mut self, entry: &Entry, layer: usize) -> Result<(), Fault> {
        let (parent, name) = split(&entry.path);
        match &entry.kind {
            Kind::Opaque => {
                let walk = self.walk(&entry.path)?;
                if walk.missing.is_empty() {
                    self.hide(walk.last(), layer);
                }
                return Ok(());
            }
            Kind::Whiteout => {
                let walk = self.walk(parent)?;
                if walk.missing.is_empty() {
                    self.white_out(walk.last(), name, layer);
                }
                return Ok(());
            }
            _ => {}
        }
        if name.is_empty() {
            if let Some(root) = self.inodes.get_mut(ROOT) {
                root.attributes = entry.attributes.clone();
            }
            return Ok(());
        }
        // Before anything is replaced that is on the way to it.
        let target = match &entry.kind {
            Kind::Hardlink(target) => Some(self.target(target, &entry.path)?),
            _ => None,
        };
        let parent = self.make_parent(parent, layer)?;
        let old = self.child(parent, name);
        let inode = match (target, self.content(&entry.kind, layer, parent)) {
            (Some(target), _) => target,
            (None, Some(content)) => {
                let both = matches!(content, Content::Directory { .. });
                let old = old.and_then(|old| Some((old.inode, self.inodes.get_mut(old.inode)?)));
                match old {
                    Some((at, Inode { attributes, content: Content::Directory { .. }, .. })) if both => {
                        attributes.clone_from(&entry.attributes);
                        at
                    }
                    _ => self.add(Inode { attributes: entry.attributes.clone(), content, links: 0 }),
                }
            }
            (None, None) => return Ok(()),
        };
        self.name(parent, name, Dentry { inode, layer });
        Ok(())
    }

    /// What the entry brings; a hard link and a whiteout bring nothing.
    fn content(&self, kind: &Kind, layer: usize, parent: usize) -> Option<Content> {
        Some(match kind {
            Kind::File { size, extents } => Content::File { layer, size: *size, extents: extents.clone() },
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
        let walk = self.walk(parent)?;
        let found = if walk.missing.is_empty() { self.child(walk.last(), name) } else { None };
        match found.and_then(|dentry| Some((dentry.inode, self.inodes.get(dentry.inode)?))) {
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

    /// The directory that `path` leads to, made where it is missing. All on the way belongs to `layer` from now on.
    fn make_parent(&mut self, path: &[u8], layer: usize) -> Result<usize, Fault> {
        let walk = self.walk(path)?;
        let mut parent = ROOT;
        for (name, inode) in walk.directories.into_iter().skip(1) {
            self.name(parent, &name, Dentry { inode, layer });
            parent = inode;
        }
        for name in walk.missing {
            let inode = self.add(directory(parent));
            self.name(parent, &name, Dentry { inode, layer });
            parent = inode;
        }
        Ok(parent)
    }

    fn add(&mut self, inode: Inode) -> usize {
        self.inodes.push(inode);
        self.inodes.len() - 1
    }

    fn names(&mut self, directory: usize) -> Option<&mut BTreeMap<Vec<u8>, Dentry>> {
        match &mut self.inodes.get_mut(directory)?.content {
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
    fn white_out(&mut self, parent: usize, name: &[u8], layer: usize) {
        match self.child(parent, name) {
            Some(dentry) if dentry.layer == layer => self.hide(dentry.inode, layer),
            _ => {
                if let Some(names) = self.names(parent) {
                    names.remove(name);
                }
            }
        }
    }

    /// Removes what lower layers have in a directory.
    fn hide(&mut self, directory: usize, layer: usize) {
        let mut queue = vec![directory];
        while let Some(directory) = queue.pop() {
            if let Some(names) = self.names(directory) {
                names.retain(|_, dentry| dentry.layer == layer);
                queue.extend(names.values().map(|dentry| dentry.inode));
            }
        }
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

/// A directory that no layer describes.
fn directory(parent: usize) -> Inode {
    let attributes = Attributes { mode: 0o755, ..Attributes::default() };
    Inode { attributes, content: Content::Directory { parent, names: BTreeMap::new() }, links: 2 }
}
