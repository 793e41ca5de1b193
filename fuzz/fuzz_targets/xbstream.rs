//! Any bytes into the reader of xbstream: it never panics, lets no path lead outside, and what it takes for a good stream
//! is one, also after it was written again.

#![no_main]

use backup::xbstream::{Chunks as _, Reader, Writer, is_safe_path};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut reader = Reader::new(bytes);
    let mut writer = Writer::new(Vec::new());
    loop {
        match reader.next_chunk() {
            Ok(Some(chunk)) => {
                assert!(is_safe_path(&chunk.path), "{:?}", chunk.path);
                writer.write(&chunk).expect("what was read can be written");
            }
            Ok(None) => break,
            Err(_) => return,
        }
    }
    let Ok(files) = reader.finish() else { return };
    let written = writer.into_inner();
    let mut again = Reader::new(&written[..]);
    while again.next_chunk().expect("what was written is good").is_some() {}
    assert_eq!(again.finish().expect("every file ended"), files);
});
