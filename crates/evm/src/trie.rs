//! A Merkle Patricia trie (yellow paper, appendix D) that is a value: a clone costs one pointer, a change copies only the
//! path to it, and each node remembers its hash. Snapshots, history, the state root and proofs all come from this.
use std::sync::{Arc, OnceLock};

use alloy_primitives::{B256, Bytes, keccak256};
use alloy_trie::nodes::{BranchNodeRef, ExtensionNodeRef, LeafNodeRef, RlpNode};
use alloy_trie::{EMPTY_ROOT_HASH, Nibbles, TrieMask};

/// What a leaf holds.
pub trait Leaf: Clone {
    /// Appends the value as it stands in the trie.
    fn encode(&self, out: &mut Vec<u8>);
}

/// Values by 32-byte keys (which are hashes: the trie is as deep as they are alike).
#[derive(Clone, Debug)]
pub struct Trie<V> {
    root: Link<V>,
}

type Link<V> = Option<Arc<Node<V>>>;

/// A node stands at a depth (in nibbles) that its parent knows; the hash that it remembers is for that depth.
#[derive(Debug)]
struct Node<V> {
    /// A key below this node: its nibbles up to the node's branch (or all, for a leaf) are those of every key below.
    key: B256,
    kind: Kind<V>,
    hash: OnceLock<RlpNode>,
}

#[derive(Clone, Debug)]
enum Kind<V> {
    Leaf(V),
    /// Children by the nibble at `depth`; nibbles between the node's own depth and `depth` are an extension.
    Branch {
        depth: usize,
        children: Box<[Link<V>; 16]>,
    },
}

impl<V: Clone> Clone for Node<V> {
    /// A copy is about to change, so it has no hash yet.
    fn clone(&self) -> Self {
        Node { key: self.key, kind: self.kind.clone(), hash: OnceLock::new() }
    }
}

impl<V> Default for Trie<V> {
    fn default() -> Self {
        Trie { root: None }
    }
}

fn nibble(key: &B256, at: usize) -> usize {
    let byte = key.0.get(at / 2).copied().unwrap_or_default();
    usize::from(if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 })
}

/// The first nibble at which two keys differ (64 for equal keys).
fn parting(left: &B256, right: &B256) -> usize {
    match left.iter().zip(right.iter()).position(|(left, right)| left != right) {
        None => 64,
        Some(byte) => byte * 2 + usize::from(left[byte] >> 4 == right[byte] >> 4),
    }
}

impl<V: Leaf> Trie<V> {
    /// The value of `key`.
    pub fn get(&self, key: &B256) -> Option<&V> {
        let mut node = self.root.as_deref()?;
        loop {
            match &node.kind {
                Kind::Leaf(value) => return (node.key == *key).then_some(value),
                Kind::Branch { depth, children } => node = children[nibble(key, *depth)].as_deref()?,
            }
        }
    }

    /// Sets the value of `key`.
    pub fn insert(&mut self, key: B256, value: V) {
        insert(&mut self.root, key, value);
    }

    /// Takes `key` out, if it is there.
    pub fn remove(&mut self, key: &B256) {
        if self.get(key).is_some() {
            remove(&mut self.root, key);
        }
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// The Merkle root. What did not change since the last call is not hashed again.
    pub fn root(&self) -> B256 {
        let Some(root) = &self.root else { return EMPTY_ROOT_HASH };
        let node = reference(root, 0);
        // A root is hashed however short it is.
        node.as_hash().unwrap_or_else(|| keccak256(node.as_slice()))
    }

    /// The nodes on the way to `key`, root first: a proof that it is there, or that it is not (EIP-1186).
    pub fn prove(&self, key: &B256) -> Vec<Bytes> {
        let (mut proof, mut depth) = (Vec::new(), 0);
        let mut link = self.root.as_ref();
        while let Some(node) = link {
            link = None;
            let below = match &node.kind {
                Kind::Branch { depth: at, children } if parting(&node.key, key) >= *at => {
                    Some((*at, children))
                }
                _ => None,
            };
            for (index, rlp) in encodings(node, depth).into_iter().enumerate() {
                // A node below 32 bytes stands inside its parent; the branch of an extension that leads elsewhere proves nothing.
                if proof.is_empty() || rlp.len() >= 32 && (index == 0 || below.is_some()) {
                    proof.push(Bytes::from(rlp));
                }
            }
            if let Some((at, children)) = below {
                link = children[nibble(key, at)].as_ref();
                depth = at + 1;
            }
        }
        proof
    }

    /// Every value, in the order of the keys.
    pub fn iter(&self) -> Iter<'_, V> {
        Iter { stack: self.root.as_deref().into_iter().collect() }
    }
}

/// See [`Trie::iter`].
#[derive(Debug)]
pub struct Iter<'a, V> {
    stack: Vec<&'a Node<V>>,
}

impl<'a, V> Iterator for Iter<'a, V> {
    type Item = &'a V;

    fn next(&mut self) -> Option<&'a V> {
        loop {
            match &self.stack.pop()?.kind {
                Kind::Leaf(value) => return Some(value),
                Kind::Branch { children, .. } => {
                    self.stack.extend(children.iter().rev().filter_map(|child| child.as_deref()));
                }
            }
        }
    }
}

fn leaf<V>(key: B256, value: V) -> Arc<Node<V>> {
    Arc::new(Node { key, kind: Kind::Leaf(value), hash: OnceLock::new() })
}

fn insert<V: Leaf>(link: &mut Link<V>, key: B256, value: V) {
    let Some(node) = link else {
        *link = Some(leaf(key, value));
        return;
    };
    let apart = parting(&node.key, &key);
    let reach = match &node.kind {
        Kind::Leaf(_) => 64,
        Kind::Branch { depth, .. } => *depth,
    };
    if apart < reach {
        // The old node moves below a new branch. There it has another depth, so it is copied without its hash.
        let mut children: Box<[Link<V>; 16]> = Default::default();
        children[nibble(&node.key, apart)] = Some(Arc::new(Node::clone(node)));
        children[nibble(&key, apart)] = Some(leaf(key, value));
        *link = Some(Arc::new(Node {
            key,
            kind: Kind::Branch { depth: apart, children },
            hash: OnceLock::new(),
        }));
        return;
    }
    let node = Arc::make_mut(node);
    node.hash.take();
    match &mut node.kind {
        Kind::Leaf(old) => *old = value,
        Kind::Branch { depth, children } => insert(&mut children[nibble(&key, *depth)], key, value),
    }
}

/// Takes a key out that is there.
fn remove<V: Leaf>(link: &mut Link<V>, key: &B256) {
    let Some(node) = link else { return };
    if matches!(node.kind, Kind::Leaf(_)) {
        *link = None;
        return;
    }
    let node = Arc::make_mut(node);
    node.hash.take();
    let Kind::Branch { depth, children } = &mut node.kind else { return };
    remove(&mut children[nibble(key, *depth)], key);
    let mut left = children.iter().flatten();
    let (first, second) = (left.next(), left.next());
    if let (Some(only), None) = (first, second) {
        *link = Some(Arc::new(Node::clone(only)));
    }
}

/// What a parent holds for a node: its hash, or the node itself when that is shorter.
fn reference<V: Leaf>(node: &Node<V>, depth: usize) -> &RlpNode {
    node.hash.get_or_init(|| {
        let rlp = encodings(node, depth).into_iter().next().unwrap_or_default();
        RlpNode::from_rlp(&rlp)
    })
}

/// The node as bytes; an extension comes first and is followed by its branch.
fn encodings<V: Leaf>(node: &Node<V>, depth: usize) -> Vec<Vec<u8>> {
    let path = Nibbles::unpack(node.key);
    let mut rlp = Vec::with_capacity(96);
    match &node.kind {
        Kind::Leaf(value) => {
            let mut bytes = Vec::with_capacity(80);
            value.encode(&mut bytes);
            LeafNodeRef::new(&path.slice(depth..), &bytes).rlp(&mut rlp);
            vec![rlp]
        }
        Kind::Branch { depth: at, children } => {
            let (mut mask, mut stack) = (0_u16, Vec::with_capacity(16));
            for (index, child) in children.iter().enumerate() {
                if let Some(child) = child {
                    mask |= 1 << index;
                    stack.push(reference(child, at + 1).clone());
                }
            }
            let branch = BranchNodeRef::new(&stack, TrieMask::new(mask)).rlp(&mut rlp);
            if depth == *at {
                return vec![rlp];
            }
            let mut extension = Vec::with_capacity(64);
            ExtensionNodeRef::new(&path.slice(depth..*at), branch.as_slice()).rlp(&mut extension);
            vec![extension, rlp]
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use alloy_trie::HashBuilder;
    use alloy_trie::proof::verify_proof;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    impl Leaf for Vec<u8> {
        fn encode(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(self);
        }
    }

    /// Keys that share long prefixes, so that extensions come and go.
    fn key(short: u16) -> B256 {
        let mut key = B256::ZERO;
        key[0] = (short >> 12) as u8;
        key[15] = (short >> 6) as u8 & 0x3f;
        key[31] = short as u8 & 0x3f;
        key
    }

    fn from_scratch(all: &BTreeMap<B256, Vec<u8>>) -> B256 {
        let mut builder = HashBuilder::default();
        for (key, value) in all {
            builder.add_leaf(Nibbles::unpack(key), value);
        }
        builder.root()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever the order of changes, the root is that of a trie built at once, and old tries stay as they were.
        #[test]
        fn roots_are_those_of_a_second_implementation(ops in vec((any::<u16>(), vec(1_u8..255, 0..40)), 1..60)) {
            let (mut trie, mut all) = (Trie::default(), BTreeMap::new());
            for (short, value) in ops {
                let (before, root) = (trie.clone(), trie.root());
                let key = key(short % 512);
                if value.is_empty() {
                    trie.remove(&key);
                    all.remove(&key);
                } else {
                    trie.insert(key, value.clone());
                    all.insert(key, value);
                }
                prop_assert_eq!(trie.root(), from_scratch(&all));
                prop_assert_eq!(before.root(), root);
            }
            prop_assert_eq!(trie.iter().collect::<Vec<_>>(), all.values().collect::<Vec<_>>());
        }

        /// Proofs of what is there and of what is not convince a second implementation.
        #[test]
        fn proofs_verify(keys in vec(any::<u16>(), 1..40), asked in any::<u16>(), size in 1_usize..48) {
            let mut trie = Trie::default();
            for short in keys {
                trie.insert(key(short % 512), vec![7; size]);
            }
            let asked = key(asked % 512);
            let expected = trie.get(&asked).cloned();
            let proof = trie.prove(&asked);
            prop_assert!(verify_proof(trie.root(), Nibbles::unpack(asked), expected, &proof).is_ok());
        }
    }

    #[test]
    fn an_empty_trie_has_the_empty_root() {
        let mut trie = Trie::default();
        assert_eq!(trie.root(), EMPTY_ROOT_HASH);
        trie.insert(key(1), vec![1]);
        trie.remove(&key(1));
        assert_eq!(trie.root(), EMPTY_ROOT_HASH);
    }
}
