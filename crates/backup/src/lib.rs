//! Full backups and the binlog archive: what they are made of, how they are made, kept, checked and restored.

pub mod archive;
pub mod catalogue;
pub mod coordinates;
pub mod donation;
pub mod fetch;
mod first_error;
pub mod full;
pub mod manifest;
mod new_file;
pub mod original;
pub mod pack;
pub mod present;
pub mod prune;
pub mod replay;
pub mod restore;
pub mod search;
pub mod store;
pub mod throttle;
pub mod unpack;
mod vouched;
pub mod xbstream;
