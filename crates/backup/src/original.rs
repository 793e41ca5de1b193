//! Archives of the original service: `yyyy_mm_dd_hh_MM_SS_bak.tar.gz`, a tar of a copy as innobackupex made it, behind
//! gzip, with nothing beside it. Ours are of the same form (`write.rs`); those of MySQL hold a clone, which is consistent
//! as it is.
//!
//! Their names are local times, which say little: an archive is known by the coordinates inside. These stand anywhere
//! in it, so it is read from its beginning to its end, which shows at the same time that it is whole.

mod write;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use mysql_client::binlog::Gtid;
use tar::{Archive, EntryType};
use topology::{Flavor, Version};

use crate::coordinates::{Coordinates, FILE_NAMES};
use crate::manifest::CLONE;
use crate::throttle::Stop;
use crate::xbstream::is_safe_path;

pub use self::write::{How, PART_SUFFIX, WriteError, Written, remove_parts, write};

/// What the names of archives end in.
pub const SUFFIX: &str = "_bak.tar.gz";

/// The notes that an archive of a clone has beside the files, as the tools would write them.
#[must_use]
pub fn clone_notes(coordinates: &Coordinates, version: Version) -> [(&'static str, String); 3] {
    [
        (FILE_NAMES[0], coordinates.text()),
        ("xtrabackup_checkpoints", format!("backup_type = {PREPARED}\n")),
        (
            "xtrabackup_info",
            format!("tool_name = {CLONE}\nserver_version = {version}\n"),
        ),
    ]
}

/// The note that an archive of ours has where a replay left transactions out of the data: one a line. The tools know none
/// such, and its name is of those that belong to no data directory.
const LEFT_OUT_NOTE: &str = "xtrabackup_left_out";

/// The note of what was left out; none where nothing was.
#[must_use]
pub fn left_out_note(left_out: &BTreeSet<Gtid>) -> Option<(&'static str, String)> {
    let lines = left_out.iter().map(|gtid| format!("{gtid}\n"));
    (!left_out.is_empty()).then(|| (LEFT_OUT_NOTE, lines.collect()))
}

/// A copy that a tool has prepared, in the tools' words.
const PREPARED: &str = "full-prepared";

/// An archive that is whole, and what it says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    /// The file.
    pub path: PathBuf,
    /// Where the copy ends.
    pub coordinates: Coordinates,
    /// The family of the server that was copied.
    pub flavor: Flavor,
    /// Its version.
    pub version: Version,
    /// Whether a server starts on it as it is: it is a clone.
    pub is_clone: bool,
    /// Transactions that the data lacks for good: see [`left_out_note`].
    pub left_out: BTreeSet<Gtid>,
    /// Of all its files, unpacked.
    pub total_bytes: u64,
}

/// Why an archive is not restored.
#[derive(Debug, thiserror::Error)]
pub enum OriginalError {
    /// It cannot be read to its end, or not be written.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// It is not a whole full copy; in a sentence.
    #[error("{0}")]
    NotWhole(String),
}

impl OriginalError {
    fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// Notes of the tools are short; a file of that name that is not is none.
const LONGEST_NOTE_BYTES: u64 = 1 << 20;

/// What the tools noted in a copy.
#[derive(Debug, Default)]
struct Notes {
    coordinates: Option<String>,
    info: Option<String>,
    checkpoints: Option<String>,
    left_out: Option<String>,
    /// Whether there is what the source wrote while it was copied.
    log: bool,
}

impl Original {
    /// Reads an archive to its end.
    ///
    /// # Errors
    /// When it is damaged, not whole, or no full copy.
    pub fn look(path: &Path, stop: &Stop) -> Result<Self, OriginalError> {
        let mut notes = Notes::default();
        let mut total_bytes = 0;
        each(path, stop, |name, length, content| {
            total_bytes += length;
            match name {
                _ if FILE_NAMES.contains(&name) => notes.coordinates = Some(note(content)?),
                "xtrabackup_info" | "mariadb_backup_info" => notes.info = Some(note(content)?),
                "xtrabackup_checkpoints" | "mariadb_backup_checkpoints" => {
                    notes.checkpoints = Some(note(content)?);
                }
                LEFT_OUT_NOTE => notes.left_out = Some(note(content)?),
                "xtrabackup_logfile" | "ib_logfile0" => notes.log = true,
                _ => {}
            }
            Ok(())
        })?;
        let found = notes.judge().map_err(OriginalError::NotWhole)?;
        Ok(Self {
            path: path.to_path_buf(),
            coordinates: found.coordinates,
            flavor: found.server.0,
            version: found.server.1,
            is_clone: found.is_clone,
            left_out: found.left_out,
            total_bytes,
        })
    }

    /// Its file's name.
    #[must_use]
    pub fn name(&self) -> String {
        self.path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// Puts every file into `directory`, and says as it goes how many bytes more are there.
    ///
    /// # Errors
    /// When the archive is damaged, a file is there already, or cannot be written; and once `stop` is set.
    pub fn unpack(
        &self,
        directory: &Path,
        stop: &Stop,
        mut progress: impl FnMut(u64),
    ) -> Result<(), OriginalError> {
        each(&self.path, stop, |name, _, content| {
            let path = directory.join(name);
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            let mut file = File::create_new(&path)?;
            let mut buffer = vec![0; 1 << 20];
            loop {
                stop.check()?;
                let length = content.read(&mut buffer)?;
                if length == 0 {
                    return Ok(());
                }
                file.write_all(&buffer[..length])?;
                progress(length as u64);
            }
        })
    }
}

/// Shows every file of an archive to `see`, with its length.
fn each(
    path: &Path,
    stop: &Stop,
    mut see: impl FnMut(&str, u64, &mut dyn Read) -> io::Result<()>,
) -> Result<(), OriginalError> {
    let shown = path.display();
    let file = File::open(path).map_err(OriginalError::io(format!("open `{shown}`")))?;
    let mut archive = Archive::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 20, file)));
    // The tool writes its files behind one another, with an end between them.
    archive.set_ignore_zeros(true);
    let damaged = || format!("read `{shown}` as a tar behind gzip");
    let entries = archive.entries().map_err(OriginalError::io(damaged()))?;
    for entry in entries {
        stop.check().map_err(OriginalError::io(damaged()))?;
        let mut entry = entry.map_err(OriginalError::io(damaged()))?;
        let name = entry.path_bytes().into_owned();
        let name = String::from_utf8_lossy(&name).into_owned();
        let name = name.strip_prefix("./").unwrap_or(&name);
        match entry.header().entry_type() {
            EntryType::Directory => continue,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse if is_safe_path(name) => {}
            _ => {
                return Err(OriginalError::NotWhole(format!(
                    "`{name}` in it is not a file of a data directory"
                )));
            }
        }
        let length = entry.size();
        see(name, length, &mut entry).map_err(OriginalError::io(format!("read `{name}` of `{shown}`")))?;
        // What was not read is skipped, and must be there.
        io::copy(&mut entry, &mut io::sink()).map_err(OriginalError::io(damaged()))?;
    }
    // To the checksum at the end.
    io::copy(&mut archive.into_inner(), &mut io::sink())
        .map(drop)
        .map_err(OriginalError::io(damaged()))
}

fn note(content: &mut dyn Read) -> io::Result<String> {
    let mut text = String::new();
    content.take(LONGEST_NOTE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// What the notes say together.
struct Judged {
    coordinates: Coordinates,
    server: (Flavor, Version),
    is_clone: bool,
    left_out: BTreeSet<Gtid>,
}

impl Notes {
    /// Else what is wrong with them, in a sentence.
    fn judge(&self) -> Result<Judged, String> {
        let missing = |what: &str| format!("there is no {what} in it: the copy did not end well");
        let checkpoints = self
            .checkpoints
            .as_deref()
            .ok_or_else(|| missing("xtrabackup_checkpoints"))?;
        let info = self.info.as_deref();
        let is_clone = info.and_then(|info| field(info, "tool_name")) == Some(CLONE);
        let expected = if is_clone { PREPARED } else { "full-backuped" };
        match field(checkpoints, "backup_type") {
            Some(kind) if kind == expected => {}
            other => {
                return Err(format!(
                    "it is not a full copy as it was made, but {}",
                    other.unwrap_or("one that does not say what it is")
                ));
            }
        }
        if !self.log && !is_clone {
            return Err(missing("xtrabackup_logfile"));
        }
        let coordinates = self
            .coordinates
            .as_deref()
            .ok_or_else(|| missing("xtrabackup_binlog_info"))?;
        let coordinates = Coordinates::parse(coordinates).map_err(|error| error.to_string())?;
        let info = info.ok_or_else(|| missing("xtrabackup_info"))?;
        let server = field(info, "server_version")
            .and_then(server)
            .ok_or_else(|| "its xtrabackup_info does not say of which server it is".to_owned())?;
        let left_out = self.left_out.as_deref().unwrap_or_default().lines();
        let left_out: Result<_, _> = left_out.map(str::parse).collect();
        Ok(Judged {
            coordinates,
            server,
            is_clone,
            left_out: left_out.map_err(|error| format!("its {LEFT_OUT_NOTE}: {error}"))?,
        })
    }
}

/// The value of `key = value` lines.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='))
        .map(str::trim)
}

/// `10.11.19-MariaDB-log`, `8.0.36`.
fn server(text: &str) -> Option<(Flavor, Version)> {
    let numbers = text
        .split(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .next()?;
    let mut numbers = numbers.split('.').map(str::parse);
    let mut next = || numbers.next()?.ok();
    let version = Version {
        major: next()?,
        minor: next()?,
        patch: next()?,
    };
    let flavor = if text.contains("MariaDB") {
        Flavor::Mariadb
    } else {
        Flavor::Mysql
    };
    Some((flavor, version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    const FILES: [(&str, &str); 6] = [
        ("./backup-my.cnf", "[mysqld]\n"),
        ("ibdata1", "pages"),
        ("app/t.ibd", "rows"),
        (
            "xtrabackup_checkpoints",
            "backup_type = full-backuped\nfrom_lsn = 0\n",
        ),
        ("xtrabackup_binlog_info", "binlog.000007\t4711\t0-1-42\n"),
        (
            "xtrabackup_info",
            "tool_name = innobackupex\nserver_version = 10.11.6-MariaDB-log\n",
        ),
    ];

    /// As the tool streams it: each file with an end of its own behind it.
    fn archive(files: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, content) in files.iter().chain([&("xtrabackup_logfile", "redo")]) {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o640);
            builder
                .append_data(&mut header, name, content.as_bytes())
                .unwrap();
            bytes.extend(builder.into_inner().unwrap());
        }
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&bytes).unwrap();
        packed.finish().unwrap()
    }

    fn look(bytes: &[u8]) -> Result<Original, OriginalError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("2026_11_22_03_00_00_bak.tar.gz");
        fs::write(&path, bytes).unwrap();
        Original::look(&path, &Stop::default())
    }

    #[test]
    fn an_archive_says_what_it_is_and_gives_every_file_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("2026_11_22_03_00_00_bak.tar.gz");
        fs::write(&path, archive(&FILES)).unwrap();
        let found = Original::look(&path, &Stop::default()).unwrap();
        assert_eq!(found.name(), "2026_11_22_03_00_00_bak.tar.gz");
        assert_eq!(
            (found.coordinates.file.as_str(), found.coordinates.offset),
            ("binlog.000007", 4711)
        );
        assert_eq!((found.flavor, found.version.patch), (Flavor::Mariadb, 6));
        let into = directory.path().join("data");
        let mut seen = 0;
        found
            .unpack(&into, &Stop::default(), |bytes| seen += bytes)
            .unwrap();
        assert_eq!(seen, found.total_bytes);
        for (name, content) in FILES {
            assert_eq!(fs::read_to_string(into.join(name)).unwrap(), content, "{name}");
        }
        // Nothing that is there is written over, and nothing is done once it is to end.
        assert!(found.unpack(&into, &Stop::default(), drop).is_err());
        let stop = Stop::default();
        stop.stop();
        assert!(
            found
                .unpack(&directory.path().join("other"), &stop, drop)
                .is_err()
        );
    }

    #[test]
    fn what_is_not_whole_is_refused_with_the_reason() {
        let whole = archive(&FILES);
        assert!(look(&whole).is_ok());
        for length in [0, 10, whole.len() / 2, whole.len() - 1] {
            assert!(
                look(&whole[..length]).is_err(),
                "{length} of {} bytes",
                whole.len()
            );
        }
        for left_out in 3..FILES.len() {
            let mut files = FILES.to_vec();
            let (name, _) = files.remove(left_out);
            let error = look(&archive(&files)).unwrap_err().to_string();
            assert!(error.contains(name), "{name}: {error}");
        }
        for (name, content, word) in [
            (
                "xtrabackup_checkpoints",
                "backup_type = incremental\n",
                "incremental",
            ),
            ("xtrabackup_binlog_info", "nothing", "xtrabackup_binlog_info"),
            ("xtrabackup_info", "server_version = new\n", "of which server"),
        ] {
            let files: Vec<_> = FILES
                .iter()
                .map(|file| if file.0 == name { (name, content) } else { *file })
                .collect();
            let error = look(&archive(&files)).unwrap_err().to_string();
            assert!(error.contains(word), "{name}: {error}");
        }
    }

    #[test]
    fn a_clone_is_known_by_its_notes_and_needs_no_log() {
        let coordinates = Coordinates {
            file: "binlog.000003".to_owned(),
            offset: 9,
            gtid: "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5".to_owned(),
        };
        let version = Version {
            major: 9,
            minor: 7,
            patch: 1,
        };
        let directory = tempfile::tempdir().unwrap();
        let part = directory.path().join("part");
        let clone = directory.path().join("clone");
        fs::create_dir(&clone).unwrap();
        fs::write(clone.join("ibdata1"), "pages").unwrap();
        let left_out = BTreeSet::from(["3e11fa47-71ca-11e1-9e33-c80aa9429562:3".parse().unwrap()]);
        let notes = clone_notes(&coordinates, version);
        let notes: Vec<_> = notes.into_iter().chain(left_out_note(&left_out)).collect();
        let notes: Vec<_> = notes
            .iter()
            .map(|(name, text)| (*name, text.as_bytes()))
            .collect();
        let how = How {
            level: 6,
            threads: 1,
            rate: crate::throttle::Rate::new(None, &Stop::default()),
            modified_seconds: 0,
        };
        let chunks = crate::xbstream::DirectoryReader::open(&clone, |_| false).unwrap();
        write(chunks, &notes, &part, &how, &[], drop).unwrap();
        let found = Original::look(&part, &Stop::default()).unwrap();
        assert_eq!(
            (found.coordinates, found.flavor, found.version, found.is_clone),
            (coordinates, Flavor::Mysql, version, true)
        );
        assert_eq!(found.left_out, left_out);
        assert_eq!(left_out_note(&BTreeSet::new()), None);
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(1);
        let name = b"../ibdata1";
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        builder.append(&header, &b"x"[..]).unwrap();
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&builder.into_inner().unwrap()).unwrap();
        let error = look(&packed.finish().unwrap()).unwrap_err().to_string();
        assert!(error.contains("../ibdata1"), "{error}");
    }
}
