//! Links, for readers of file systems that follow none: as Linux does, in the file system itself.
use super::{Content, FileSystem, Found};
use std::cell::RefCell;
use std::collections::VecDeque;

/// Most links on the way to a file (Linux: MAXSYMLINKS).
const LINKS_MAX: usize = 40;
/// Most bytes of a link.
const TARGET_MAX: usize = 4096;

/// A reader that knows paths without links.
pub(super) trait Plain {
    /// What reads a file that was found.
    type Node: Copy;
    const KIND: &'static str;

    /// What a path leads to; `None` for a link.
    fn find(&mut self, path: &[u8]) -> Result<(Self::Node, Option<Found>), String>;
    fn target(&mut self, path: &[u8]) -> Result<Vec<u8>, String>;
    fn names(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>, String>;
    /// Some bytes of a file from `at` on; none at its end.
    fn read(&mut self, node: Self::Node, at: u64, data: &mut [u8]) -> Result<usize, String>;
}

/// A reader behind which links are followed.
pub(super) struct Following<P>(pub(super) RefCell<P>);

impl<P: Plain> Following<P> {
    /// Where a path leads, and what is there.
    fn follow(&self, path: &str) -> Result<(Vec<u8>, P::Node, Found), String> {
        let mut plain = self.0.borrow_mut();
        let mut ahead: VecDeque<Vec<u8>> =
            path.as_bytes().split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
        let (mut way, mut links) = (vec![], 0);
        let mut there = plain.find(b"/")?;
        while let Some(name) = ahead.pop_front() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => drop(way.pop()),
                _ => way.push(name),
            }
            there = plain.find(&joined(&way))?;
            if there.1.is_some() {
                continue;
            }
            links += 1;
            let target = plain.target(&joined(&way))?;
            if links > LINKS_MAX || target.len() > TARGET_MAX {
                return Err("its links lead nowhere".to_string());
            }
            match target.first() {
                Some(b'/') => way.clear(),
                _ => drop(way.pop()),
            }
            for name in target.split(|byte| *byte == b'/').rev() {
                ahead.push_front(name.to_vec());
            }
            there = plain.find(&joined(&way))?;
        }
        match there {
            (node, Some(found)) => Ok((joined(&way), node, found)),
            (_, None) => Err("its links lead nowhere".to_string()),
        }
    }
}

fn joined(way: &[Vec<u8>]) -> Vec<u8> {
    let mut path = vec![b'/'];
    path.extend(way.join(&b'/'));
    path
}

impl<P: Plain> FileSystem for Following<P> {
    fn kind(&self) -> &'static str {
        P::KIND
    }

    fn stat(&self, path: &str) -> Result<Found, String> {
        Ok(self.follow(path)?.2)
    }

    fn names(&self, path: &str) -> Vec<String> {
        let names = self.follow(path).and_then(|(path, ..)| self.0.borrow_mut().names(&path));
        names.unwrap_or_default().into_iter().filter_map(|name| String::from_utf8(name).ok()).collect()
    }

    fn open(&self, path: &str) -> Result<Content<'_>, String> {
        let (_, node, _) = self.follow(path)?;
        let mut at = 0;
        Ok(Box::new(move |data| {
            let count = self.0.borrow_mut().read(node, at, data)?;
            at += count as u64;
            Ok(count)
        }))
    }
}
