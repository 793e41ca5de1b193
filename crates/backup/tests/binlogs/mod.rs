//! Binlog files of both families' form, made byte by byte.

use std::ops::RangeInclusive;

use mysql_client::binlog::encode_gtid_set;
use topology::Flavor;
use topology::gtid::GtidSet;

/// An incarnation.
pub(crate) const MARIADB_UUID: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";

/// Seconds since 1970 of the first transaction.
const BEGIN: u32 = 1_795_000_000;

/// A file that grows.
#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
    pub(crate) flavor: Flavor,
}

/// The UUID of MySQL's server of that number.
pub(crate) fn mysql_uuid(server: u32) -> String {
    format!("45674480-e651-11f1-b0ea-02fc{server:08x}")
}

impl File {
    /// Of a MySQL server, with what was logged before.
    pub(crate) fn mysql(before: &GtidSet) -> Self {
        let mut file = Self::begun(Flavor::Mysql, "9.7.4", 42);
        file.event(35, 1, BEGIN, &encode_gtid_set(before));
        file
    }

    fn begun(flavor: Flavor, version: &str, event_types: usize) -> Self {
        let mut format = 4_u16.to_le_bytes().to_vec();
        let mut version = version.as_bytes().to_vec();
        version.resize(50, 0);
        format.extend(version);
        format.extend([0, 0, 0, 0, 19]);
        format.extend(vec![0; event_types]);
        format.push(1);
        let mut file = Self {
            bytes: vec![0xfe, b'b', b'i', b'n'],
            flavor,
        };
        file.event(15, 1, BEGIN, &format);
        file
    }

    /// With what was logged before: domain, server, sequence.
    pub(crate) fn new(before: &[(u32, u32, u64)]) -> Self {
        let mut file = Self::begun(Flavor::Mariadb, "10.11.19-MariaDB-log", 171);
        let mut list = u32::try_from(before.len()).unwrap().to_le_bytes().to_vec();
        for (domain, server, sequence) in before {
            list.extend(domain.to_le_bytes());
            list.extend(server.to_le_bytes());
            list.extend(sequence.to_le_bytes());
        }
        file.event(163, 1, BEGIN, &list);
        file
    }

    /// Transactions with rows, one second apart.
    pub(crate) fn transactions(mut self, domain: u32, server: u32, sequences: RangeInclusive<u64>) -> Self {
        for sequence in sequences {
            let time = match self.flavor {
                Flavor::Mariadb => self.begin(domain, server, sequence),
                Flavor::Mysql => self.begin_mysql(server, sequence),
            };
            self.event(19, server, time, &body_of(30));
            self.event(23, server, time, &body_of(60));
            self.event(16, server, time, &sequence.to_le_bytes());
        }
        self
    }

    /// One transaction with an event of that length.
    pub(crate) fn long_transaction(mut self, domain: u32, server: u32, sequence: u64, length: usize) -> Self {
        let time = self.begin(domain, server, sequence);
        self.event(23, server, time, &body_of(length));
        self.event(16, server, time, &sequence.to_le_bytes());
        self
    }

    /// Begun so many seconds later than others.
    pub(crate) fn begun_later(mut self, seconds: u32) -> Self {
        let length = usize::try_from(u32::from_le_bytes(self.bytes[13..17].try_into().unwrap())).unwrap();
        let (time, crc) = (BEGIN + seconds, 4 + length - 4);
        self.bytes[4..8].copy_from_slice(&time.to_le_bytes());
        let checksum = crc32fast::hash(&self.bytes[4..crc]);
        self.bytes[crc..crc + 4].copy_from_slice(&checksum.to_le_bytes());
        self
    }

    /// The end of the file.
    pub(crate) fn rotate(mut self, next: &str) -> Self {
        let mut body = 4_u64.to_le_bytes().to_vec();
        body.extend(next.as_bytes());
        self.event(4, 1, BEGIN, &body);
        self
    }

    fn begin(&mut self, domain: u32, server: u32, sequence: u64) -> u32 {
        let time = BEGIN + u32::try_from(sequence).unwrap();
        let mut body = sequence.to_le_bytes().to_vec();
        body.extend(domain.to_le_bytes());
        body.push(0x0c);
        body.extend([0; 6]);
        self.event(162, server, time, &body);
        time
    }

    /// A transaction of 288 bytes with the events after these two.
    fn begin_mysql(&mut self, server: u32, sequence: u64) -> u32 {
        let time = BEGIN + u32::try_from(sequence).unwrap();
        let mut body = vec![
            0, 0x45, 0x67, 0x44, 0x80, 0xe6, 0x51, 0x11, 0xf1, 0xb0, 0xea, 0x02, 0xfc,
        ];
        body.extend(server.to_be_bytes());
        body.extend(sequence.to_le_bytes());
        body.push(2);
        body.extend([0; 16]);
        body.extend(&(u64::from(time) * 1_000_000).to_le_bytes()[..7]);
        body.extend([0xfc, 0x20, 0x01]);
        body.extend(90_704_u32.to_le_bytes());
        self.event(33, server, time, &body);
        let mut begin = vec![0; 14];
        begin.extend(b"BEGIN");
        self.event(2, server, time, &begin);
        time
    }

    fn event(&mut self, kind: u8, server: u32, time: u32, body: &[u8]) {
        let length = 19 + body.len() + 4;
        let end = u32::try_from(self.bytes.len() + length).unwrap();
        let mut event = time.to_le_bytes().to_vec();
        event.push(kind);
        event.extend(server.to_le_bytes());
        event.extend(u32::try_from(length).unwrap().to_le_bytes());
        event.extend(end.to_le_bytes());
        event.extend([0, 0]);
        event.extend(body);
        event.extend(crc32fast::hash(&event).to_le_bytes());
        self.bytes.extend(event);
    }
}

/// Bytes that do not compress to nothing.
fn body_of(length: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect()
}
