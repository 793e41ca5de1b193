//! What is written is what `tar` and we ourselves read.

use super::*;
use crate::original::each;
use crate::throttle::Stop;
use std::collections::VecDeque;
use std::process::Command;

/// Chunks as a tool could give them.
struct Given(VecDeque<Chunk>, usize);

impl Chunks for Given {
    fn next_chunk(&mut self) -> Result<Option<Chunk>, ReadError> {
        Ok(self.0.pop_front())
    }

    fn finish(self) -> Result<usize, ReadError> {
        Ok(self.1)
    }
}

fn chunk(path: &str, content: Content) -> Chunk {
    Chunk {
        path: path.to_owned(),
        content,
    }
}

fn bytes(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 24) as u8
        })
        .collect()
}

fn how(threads: usize) -> How {
    How {
        level: 1,
        threads,
        rate: Rate::new(None, &Stop::default()),
        modified_seconds: 1_700_000_000,
    }
}

/// Files of every kind: empty, small, at the borders of blocks and pieces, large, of a long name, alternating.
fn files() -> BTreeMap<String, Vec<u8>> {
    let long = format!("{}/{}.ibd", "d".repeat(120), "t".repeat(200));
    let lengths = [
        ("ib_logfile0", 3 * PIECE_BYTES + 5),
        ("empty", 0),
        ("one", 1),
        ("block", BLOCK_BYTES),
        ("piece", PIECE_BYTES),
        ("piece_and_one", PIECE_BYTES + 1),
        ("large", 9 * PIECE_BYTES + 100),
        (long.as_str(), 2 * PIECE_BYTES),
        ("xtrabackup_binlog_info", 30),
    ];
    lengths
        .iter()
        .zip(1..)
        .map(|((path, length), seed)| ((*path).to_owned(), bytes(seed, *length)))
        .collect()
}

/// As one reader and the redo log's would stream them: a chunk of the log before each of the others'.
fn streamed(files: &BTreeMap<String, Vec<u8>>) -> Given {
    const CHUNK_BYTES: usize = 700_000;
    let of = |path: &str, content: &[u8]| -> VecDeque<Chunk> {
        let mut offset = 0;
        content
            .chunks(CHUNK_BYTES)
            .map(|data| {
                let payload = Content::Payload {
                    offset,
                    data: data.to_vec(),
                };
                offset += data.len() as u64;
                chunk(path, payload)
            })
            .collect()
    };
    let mut log = of("ib_logfile0", &files["ib_logfile0"]);
    log.push_back(chunk("ib_logfile0", Content::End));
    let mut chunks = VecDeque::new();
    for (path, content) in files.iter().filter(|(path, _)| *path != "ib_logfile0") {
        for piece in of(path, content) {
            chunks.extend(log.pop_front());
            chunks.push_back(piece);
        }
        chunks.push_back(chunk(path, Content::End));
    }
    chunks.extend(log);
    Given(chunks, files.len())
}

fn read(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    each(path, &Stop::default(), |name, length, content| {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        assert_eq!(bytes.len() as u64, length);
        found.insert(name.to_owned(), bytes);
        Ok(())
    })
    .unwrap();
    found
}

#[test]
fn every_file_is_in_the_archive_for_our_reader_and_for_tar() {
    let files = files();
    for threads in [1, 3] {
        let home = tempfile::tempdir().unwrap();
        let part = home.path().join(format!("a{PART_SUFFIX}"));
        let mut seen = 0;
        let more: &[(&str, &[u8])] = &[("xtrabackup_info", b"server_version = 1\n")];
        let captured = ["xtrabackup_binlog_info"];
        let written = write(streamed(&files), more, &part, &how(threads), &captured, |bytes| {
            seen = bytes;
        })
        .unwrap();
        let mut expected = files.clone();
        expected.insert(more[0].0.to_owned(), more[0].1.to_vec());
        let total: usize = expected.values().map(Vec::len).sum();
        assert_eq!(
            (written.files, written.copied_bytes, written.length),
            (expected.len(), total as u64, fs::metadata(&part).unwrap().len())
        );
        assert_eq!(seen + more[0].1.len() as u64, total as u64);
        assert_eq!(written.captured[captured[0]], files[captured[0]]);
        assert!(read(&part) == expected);
        // Nothing that waited is left beside it.
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
        // As a person unpacks it.
        let by_hand = home.path().join("by_hand");
        fs::create_dir(&by_hand).unwrap();
        let unpacked = Command::new("tar")
            .arg("-xzf")
            .arg(&part)
            .arg("-C")
            .arg(&by_hand)
            .output()
            .unwrap();
        assert!(unpacked.status.success(), "{unpacked:?}");
        assert!(unpacked.stderr.is_empty(), "{unpacked:?}");
        for (path, content) in &expected {
            assert!(fs::read(by_hand.join(path)).unwrap() == *content, "{path}");
        }
        let tested = Command::new("gzip")
            .arg("-t")
            .stdin(File::open(&part).unwrap())
            .status();
        assert!(tested.unwrap().success());
    }
}

#[test]
fn holes_are_zeros() {
    let map = vec![
        SparseEntry { skip: 3, length: 2 },
        SparseEntry { skip: 1, length: 1 },
    ];
    assert_eq!(filled(&map, b"abc"), b"\0\0\0ab\0c");
}

#[test]
fn a_stream_that_fails_leaves_a_part_that_is_removed_and_no_archive() {
    struct Cut(usize);
    impl Chunks for Cut {
        fn next_chunk(&mut self) -> Result<Option<Chunk>, ReadError> {
            self.0 += 1;
            if self.0 > 3 {
                return Err(ReadError::Unfinished {
                    count: 1,
                    first: "large".to_owned(),
                });
            }
            let data = bytes(1, PIECE_BYTES);
            let offset = (self.0 - 1) as u64 * PIECE_BYTES as u64;
            Ok(Some(chunk("large", Content::Payload { offset, data })))
        }

        fn finish(self) -> Result<usize, ReadError> {
            Ok(1)
        }
    }
    let home = tempfile::tempdir().unwrap();
    let part = home.path().join(format!("a{PART_SUFFIX}"));
    assert!(write(Cut(0), &[], &part, &how(2), &[], drop).is_err());
    // Nothing is written over.
    assert!(write(Cut(0), &[], &part, &how(2), &[], drop).is_err());
    assert!(remove_parts(home.path()).unwrap() > 0);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn a_file_of_more_than_eight_gibibytes_has_a_header() {
    let length = 9_u64 << 30;
    let block = header("app/t.ibd", length, 0);
    assert_eq!(Header::from_byte_slice(&block).entry_size().unwrap(), length);
}
