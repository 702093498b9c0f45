//! Layers as archives have them, to disks as Linux and Debian's tools see them.
mod archive;
mod carry;
mod ext4;
mod host;
mod hostile;
mod sparse;
mod umoci;
