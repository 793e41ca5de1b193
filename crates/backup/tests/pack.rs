//! Packing a stream and unpacking its segments: what goes in comes out, and damage is named.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};

use backup::manifest::{File, Packing};
use backup::pack::{How, PackError, Packed, pack};
use backup::throttle::Stop;
use backup::unpack::{UnpackError, unpack};
use backup::xbstream::{Chunk, Content, DirectoryReader, Reader, SparseEntry, Writer};

const ZSTD: Packing = Packing::Zstd { level: 1 };

fn how(packing: Packing) -> How {
    How {
        packing,
        threads: 2,
        stop: Stop::default(),
    }
}

/// Files with content that neither compresses to nothing nor not at all, in alternating chunks.
fn contents() -> BTreeMap<String, Vec<u8>> {
    let mut state = 7_u32;
    let mut random = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 & 0x1f
    };
    (0..20_usize)
        .map(|index| {
            (
                format!("db{}/t{index}.ibd", index % 3),
                (0..index * 40_000).map(|_| random()).collect(),
            )
        })
        .collect()
}

fn stream(contents: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    let mut offsets: Vec<(&String, usize)> = contents.keys().map(|path| (path, 0)).collect();
    while !offsets.is_empty() {
        offsets.retain_mut(|(path, offset)| {
            let rest = &contents[*path][*offset..];
            let piece = &rest[..rest.len().min(100_000)];
            let content = if piece.is_empty() {
                Content::End
            } else {
                Content::Payload {
                    offset: *offset as u64,
                    data: piece.to_vec(),
                }
            };
            let ended = content == Content::End;
            *offset += piece.len();
            writer
                .write(&Chunk {
                    path: (*path).clone(),
                    content,
                })
                .unwrap();
            !ended
        });
    }
    writer.into_inner()
}

fn pack_into(segments: usize, packing: Packing) -> Packed<Vec<u8>> {
    let mut seen = 0;
    let packed = pack(
        Reader::new(&stream(&contents())[..]),
        vec![Vec::new(); segments],
        &how(packing),
        &["db1/t1.ibd"],
        |bytes| seen = bytes,
    )
    .unwrap();
    assert_eq!(
        seen,
        contents().values().map(|data| data.len() as u64).sum::<u64>()
    );
    packed
}

fn of_segment<S>(packed: &Packed<S>, segment: usize) -> Vec<&File> {
    packed
        .files
        .iter()
        .filter(|file| file.segment == segment)
        .collect()
}

#[test]
fn what_is_packed_is_unpacked_by_either_compression() {
    for packing in [ZSTD, Packing::Gzip { level: 1 }] {
        let packed = pack_into(3, packing);
        let directory = tempfile::tempdir().unwrap();
        for (index, segment) in packed.segments.iter().enumerate() {
            assert_eq!(segment.length, segment.sink.len() as u64);
            assert!(
                !of_segment(&packed, index).is_empty(),
                "segment {index} was given nothing"
            );
            unpack(
                &segment.sink[..],
                packing,
                &of_segment(&packed, index),
                Some(directory.path()),
                |_| (),
            )
            .unwrap();
        }
        for (path, content) in contents() {
            assert!(
                fs::read(directory.path().join(&path)).unwrap() == content,
                "{path}"
            );
        }
    }
}

#[test]
fn holes_come_back_as_zeros() {
    let mut writer = Writer::new(Vec::new());
    let map = vec![
        SparseEntry {
            skip: 10_000,
            length: 3,
        },
        SparseEntry {
            skip: 5000,
            length: 0,
        },
    ];
    let content = Content::Sparse {
        offset: 0,
        map,
        data: b"abc".to_vec(),
    };
    for content in [content, Content::End] {
        writer
            .write(&Chunk {
                path: "t.ibd".to_owned(),
                content,
            })
            .unwrap();
    }
    let packed = pack(
        Reader::new(&writer.into_inner()[..]),
        vec![Vec::new()],
        &how(ZSTD),
        &[],
        |_| (),
    )
    .unwrap();
    let directory = tempfile::tempdir().unwrap();
    unpack(
        &packed.segments[0].sink[..],
        ZSTD,
        &of_segment(&packed, 0),
        Some(directory.path()),
        |_| (),
    )
    .unwrap();
    let mut expected = vec![0; 10_000];
    expected.extend(b"abc");
    expected.extend([0; 5000]);
    assert!(fs::read(directory.path().join("t.ibd")).unwrap() == expected);
}

#[test]
fn a_cut_or_flipped_segment_never_passes() {
    let packed = pack_into(1, ZSTD);
    let whole = &packed.segments[0].sink;
    let expected = of_segment(&packed, 0);
    let check = |segment: &[u8]| unpack(segment, ZSTD, &expected, None, |_| ());
    check(whole).unwrap();
    for step in 0..200 {
        let position = whole.len() * step / 200;
        assert!(check(&whole[..position]).is_err(), "cut at {position}");
        let mut flipped = whole.clone();
        flipped[position] ^= 1;
        assert!(check(&flipped).is_err(), "flipped at {position}");
    }
}

#[test]
fn what_the_manifest_does_not_say_is_named() {
    let packed = pack_into(1, ZSTD);
    let segment = &packed.segments[0].sink[..];
    let error_for = |change: &dyn Fn(&mut Vec<File>)| {
        let mut files = packed.files.clone();
        change(&mut files);
        let expected: Vec<&File> = files.iter().collect();
        unpack(segment, ZSTD, &expected, None, |_| ())
            .unwrap_err()
            .to_string()
    };
    let path = packed.files[5].path.clone();
    for (words, change) in [
        (
            "is not in the manifest",
            &(|files: &mut Vec<File>| drop(files.remove(5))) as &dyn Fn(&mut Vec<File>),
        ),
        ("another SHA-256", &|files| files[5].sha256 = "00".repeat(32)),
        ("its manifest says", &|files| files[5].length += 1),
    ] {
        let error = error_for(change);
        assert!(error.contains(words) && error.contains(&path), "{error}");
    }
    let error = error_for(&|files| {
        files.push(File {
            path: "gone.ibd".to_owned(),
            ..files[0].clone()
        });
    });
    assert!(
        error.contains("gone.ibd") && error.contains("not in the segment"),
        "{error}"
    );
}

#[test]
fn nothing_is_overwritten() {
    let packed = pack_into(1, ZSTD);
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("db1")).unwrap();
    fs::write(directory.path().join("db1/t1.ibd"), "precious").unwrap();
    let error = unpack(
        &packed.segments[0].sink[..],
        ZSTD,
        &of_segment(&packed, 0),
        Some(directory.path()),
        |_| (),
    );
    assert!(matches!(error, Err(UnpackError::Write { .. })));
    assert_eq!(
        fs::read(directory.path().join("db1/t1.ibd")).unwrap(),
        b"precious"
    );
}

/// Takes so many bytes, then is full.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0 < bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0 -= bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_store_and_a_cut_stream_end_the_packing() {
    let stream = stream(&contents());
    let full = pack(
        Reader::new(&stream[..]),
        vec![Full(100_000), Full(100_000)],
        &how(ZSTD),
        &[],
        |_| (),
    );
    assert!(matches!(full, Err(PackError::Sink { number: 1 | 2, .. })));
    let cut = pack(
        Reader::new(&stream[..stream.len() / 2]),
        vec![Vec::new(), Vec::new()],
        &how(ZSTD),
        &[],
        |_| (),
    );
    assert!(matches!(cut, Err(PackError::Stream(_))));
}

#[test]
fn a_directory_is_packed_as_a_stream_is() {
    let directory = tempfile::tempdir().unwrap();
    for (path, content) in contents() {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    fs::write(directory.path().join("left.out"), "x").unwrap();
    let chunks = DirectoryReader::open(directory.path(), |path| path == "left.out").unwrap();
    let packed = pack(
        chunks,
        vec![Vec::new(), Vec::new()],
        &how(ZSTD),
        &["db1/t1.ibd"],
        |_| (),
    )
    .unwrap();
    assert_eq!(packed.files, {
        let mut files = pack_into(2, ZSTD).files;
        for (file, packed) in files.iter_mut().zip(&packed.files) {
            file.segment = packed.segment;
        }
        files
    });
    assert!(packed.captured["db1/t1.ibd"] == contents()["db1/t1.ibd"]);
    std::os::unix::fs::symlink("/etc/passwd", directory.path().join("link")).unwrap();
    assert!(DirectoryReader::open(directory.path(), |_| false).is_err());
}
