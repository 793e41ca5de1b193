//! Full backups: what they are made of, how they are made, kept, checked and restored.

pub mod manifest;
pub mod pack;
pub mod replay;
pub mod store;
pub mod unpack;
pub mod xbstream;
