//! The reader and the writer against each other, against damage, and against the real `mbstream`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use backup::xbstream::{Chunk, Chunks as _, Content, ReadError, Reader, SparseEntry, Writer};
use proptest::prelude::*;

fn payload(path: &str, offset: u64, data: &[u8]) -> Chunk {
    Chunk {
        path: path.to_owned(),
        content: Content::Payload {
            offset,
            data: data.to_vec(),
        },
    }
}

fn end(path: &str) -> Chunk {
    Chunk {
        path: path.to_owned(),
        content: Content::End,
    }
}

fn write(chunks: &[Chunk]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for chunk in chunks {
        writer.write(chunk).unwrap();
    }
    writer.into_inner()
}

/// All chunks, and how many files there were.
fn read(stream: &[u8]) -> Result<(Vec<Chunk>, usize), ReadError> {
    let mut reader = Reader::new(stream);
    let mut chunks = Vec::new();
    while let Some(chunk) = reader.next_chunk()? {
        chunks.push(chunk);
    }
    Ok((chunks, reader.finish()?))
}

fn sample() -> Vec<Chunk> {
    vec![
        payload("ibdata1", 0, b"first half, "),
        payload("db/t.ibd", 0, &[7; 5000]),
        payload("ibdata1", 12, b"second half"),
        end("db/t.ibd"),
        Chunk {
            path: "db/holes.ibd".to_owned(),
            content: Content::Sparse {
                offset: 0,
                map: vec![
                    SparseEntry { skip: 0, length: 3 },
                    SparseEntry {
                        skip: 4096,
                        length: 2,
                    },
                ],
                data: b"abcde".to_vec(),
            },
        },
        payload("db/holes.ibd", 4101, b"tail"),
        end("db/holes.ibd"),
        end("ibdata1"),
        end("empty"),
    ]
}

#[test]
fn what_is_written_is_read() {
    let (chunks, files) = read(&write(&sample())).unwrap();
    assert_eq!(chunks, sample());
    assert_eq!(files, 4);
}

#[test]
fn a_stream_cut_anywhere_is_found() {
    let stream = write(&sample());
    for length in 0..stream.len() {
        match read(&stream[..length]) {
            Err(ReadError::Truncated { .. } | ReadError::Unfinished { .. }) => {}
            // Cut between two chunks where all files that had begun were complete: only a manifest can tell.
            Ok((chunks, _)) => {
                assert!(write(&chunks) == stream[..length], "cut at {length}");
            }
            Err(other) => panic!("cut at {length}: {other}"),
        }
    }
}

#[test]
fn a_flipped_bit_in_a_payload_or_its_frame_is_found() {
    let stream = write(&sample());
    for position in 0..stream.len() {
        let mut damaged = stream.clone();
        damaged[position] ^= 0x20;
        if let Ok((chunks, _)) = read(&damaged) {
            // Only names and flags carry no checksum; a manifest names the files.
            let names_differ = chunks
                .iter()
                .zip(sample())
                .any(|(read, written)| read.path != written.path);
            assert!(names_differ || chunks == sample(), "flipped at {position}");
        }
    }
}

#[test]
fn paths_that_lead_outside_are_refused() {
    for path in [
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "",
        "a/./b",
        "a\\b",
        "a\0b",
    ] {
        let error = read(&write(&[end(path)])).unwrap_err();
        assert!(matches!(error, ReadError::Damaged { .. }), "{path:?}: {error}");
    }
    let (chunks, _) = read(&write(&[end("./db/t.ibd")])).unwrap();
    assert_eq!(chunks[0].path, "db/t.ibd");
}

#[test]
fn contradictions_are_refused() {
    let cases: [(&str, Vec<Chunk>); 4] = [
        (
            "goes on at byte 5",
            vec![payload("a", 0, b"1234"), payload("a", 5, b"x")],
        ),
        ("goes on at byte 9", vec![payload("a", 9, b"x")]),
        ("after its end", vec![end("a"), payload("a", 0, b"x")]),
        ("the offset", vec![payload("a", u64::MAX - 1, b"x")]),
    ];
    for (expected, chunks) in cases {
        let error = read(&write(&chunks)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(matches!(
        read(&write(&[payload("a", 0, b"x")])),
        Err(ReadError::Unfinished { count: 1, .. })
    ));
}

/// Bytes that begin like a chunk, so that the parser gets past the magic.
fn nearly_a_stream() -> impl Strategy<Value = Vec<u8>> {
    (
        prop::bool::ANY,
        prop::sample::select(vec![b'P', b'S', b'E', b'X']),
        prop::collection::vec(any::<u8>(), 0..200),
    )
        .prop_map(|(magic, kind, rest)| {
            let mut bytes = Vec::new();
            if magic {
                bytes.extend(b"XBSTCK01\0");
                bytes.push(kind);
            }
            bytes.extend(rest);
            bytes
        })
}

proptest! {
    #[test]
    fn no_input_makes_the_reader_panic(bytes in nearly_a_stream()) {
        let _ = read(&bytes);
    }
}

/// Runs the server's own tool; its absence fails the test.
fn mbstream(arguments: &[&str], directory: &Path, input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("mbstream")
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("mbstream comes with the package mariadb-backup");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap().unwrap();
    assert!(
        output.status.success(),
        "mbstream {arguments:?}: {}",
        output.status
    );
    output.stdout
}

#[test]
fn the_real_tool_unpacks_what_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let big: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let chunks = [
        payload("ibdata1", 0, &big[..7_000_000]),
        payload("db/t.ibd", 0, b"some bytes"),
        end("db/t.ibd"),
        payload("ibdata1", 7_000_000, &big[7_000_000..]),
        end("ibdata1"),
    ];
    mbstream(&["-x"], directory.path(), &write(&chunks));
    assert_eq!(fs::read(directory.path().join("ibdata1")).unwrap(), big);
    assert_eq!(
        fs::read(directory.path().join("db/t.ibd")).unwrap(),
        b"some bytes"
    );
}

#[test]
fn what_the_real_tool_packs_is_read_byte_for_byte() {
    let directory = tempfile::tempdir().unwrap();
    let files = ["one", "two", "three"];
    for (numbers, name) in [0, 5_000_000, 10_000_000].into_iter().zip(files) {
        let content: Vec<u8> = (0..numbers).flat_map(u32::to_le_bytes).collect();
        fs::write(directory.path().join(name), content).unwrap();
    }
    let stream = mbstream(&["-c", "one", "two", "three"], directory.path(), b"");
    let (chunks, count) = read(&stream).unwrap();
    assert_eq!(count, files.len());
    for name in files {
        let mut content: Vec<u8> = Vec::new();
        for chunk in chunks.iter().filter(|chunk| chunk.path == name) {
            if let Content::Payload { data, .. } = &chunk.content {
                content.extend(data);
            }
        }
        assert!(
            content == fs::read(directory.path().join(name)).unwrap(),
            "{name} differs"
        );
    }
}
