//! Images of containers where they are: in a registry, in a layout on the disk, in an archive. Finds an image by its
//! reference, reads its manifest and configuration, and gives its layers as streams whose bytes are checked.
//!
//! ```text
//!  reference ──► source::open ─┬─► registry (OCI distribution specification; credentials, mirrors)
//!                              ├─► layout   (OCI image layout in a directory)
//!                              └─► archive  (the same in a tar; `docker save`)
//!                                     │
//!                          resolve: manifest ─► platform ─► Image { config, layers } ─► blob by blob
//! ```
//!
//! What a layer holds is none of its business. Everything that it reads may be hostile: sizes are bounded, digests are
//! checked, and a registry is only as trusted as the digest that the user wrote.
#![forbid(unsafe_code)]

mod archive;
mod credentials;
mod digest;
mod layout;
mod logins;
mod patience;
mod push;
mod reference;
mod registries;
mod registry;
mod source;
mod types;
mod user;

pub use digest::{Checked, Digest};
pub use logins::Logins;
pub use push::Pusher;
pub use reference::{Reference, RegistryName};
pub use registry::{Client, Options};
pub use source::{Blob, Form, Image, Layer, Source, Watch, open, resolve};
pub use types::{
    Config, Descriptor, Healthcheck, History, Index, MACHINE, Manifest, Platform, Process, Rootfs,
};
