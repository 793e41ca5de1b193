//! How a server's memory is divided: pure arithmetic from one number.
//!
//! ```text
//!  memory = fixed + pool × 1.06 + connections × per connection + MySQL's temporary tables + reserve
//! ```
//! The fixed parts and the cost of a connection were measured on MariaDB 10.11.19 and MySQL 9.7.4: resident
//! memory of an idle server without its pool, and its growth while each connection holds a sort, a join and a temporary
//! table at the same time.

use std::path::Path;

use topology::Flavor;

use crate::config::Memory;

const MEBIBYTE: u64 = 1 << 20;

/// The sizes that follow from the memory a server may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// `innodb_buffer_pool_size`, a multiple of chunk × instances.
    pub buffer_pool_bytes: u64,
    /// `innodb_buffer_pool_chunk_size`; a pool that is no multiple of it would be rounded up.
    pub buffer_pool_chunk_bytes: u64,
    /// `innodb_buffer_pool_instances` (MySQL).
    pub buffer_pool_instances: u64,
    /// `innodb_log_file_size`, `innodb_redo_log_capacity`.
    pub redo_log_bytes: u64,
    /// `max_connections`.
    pub max_connections: u64,
    /// What each connection may take.
    pub session_bytes: u64,
    /// `sort_buffer_size`: of each sort.
    pub sort_buffer_bytes: u64,
    /// `tmp_table_size` and `max_heap_table_size`: of each temporary table in memory.
    pub temporary_table_bytes: u64,
    /// `temptable_max_ram` (MySQL): of all temporary tables together.
    pub temporary_tables_bytes: u64,
    /// `table_open_cache`.
    pub open_tables: u64,
    /// `performance_schema` (MySQL).
    pub performance_schema: bool,
}

/// What a connection may take when it works.
#[derive(Debug, Clone, Copy)]
struct Session {
    sort_buffer_bytes: u64,
    /// The largest of its temporary tables that stays in memory (MariaDB; MySQL's are limited all together).
    temporary_table_bytes: u64,
    /// All of it.
    bytes: u64,
}

impl Session {
    /// Of a server that may use `total`. The least is 1.25 MiB, with which a machine of 2 GiB has 400 connections and one
    /// of 10 GiB has 2000. Beyond 20 GiB the buffers of these grow, and all of them together keep to an eighth.
    fn of(total: u64, flavor: Flavor) -> Self {
        let bytes = (total / 16384).clamp(5 * MEBIBYTE / 4, 16 * MEBIBYTE);
        let free = bytes - Self::base_bytes(flavor);
        let page = |bytes: u64| bytes / 4096 * 4096;
        let sort_buffer_bytes = match flavor {
            Flavor::Mariadb => free / 3,
            // Sorting takes a quarter more than its buffer.
            Flavor::Mysql => free / 5 * 4,
        };
        let sort_buffer_bytes = page(sort_buffer_bytes.clamp(MEBIBYTE / 4, 2 * MEBIBYTE));
        Self {
            sort_buffer_bytes,
            temporary_table_bytes: page(free - sort_buffer_bytes),
            bytes,
        }
    }

    /// Stack, network and join buffers, and what MySQL's temporary tables take outside of their limit.
    fn base_bytes(flavor: Flavor) -> u64 {
        match flavor {
            Flavor::Mariadb => MEBIBYTE / 2,
            Flavor::Mysql => 920 << 10,
        }
    }
}

/// What an idle server takes beside its buffer pool.
fn fixed_bytes(flavor: Flavor, performance_schema: bool) -> u64 {
    match (flavor, performance_schema) {
        (Flavor::Mariadb, _) => 80 * MEBIBYTE,
        (Flavor::Mysql, false) => 235 * MEBIBYTE,
        (Flavor::Mysql, true) => 480 * MEBIBYTE,
    }
}

/// What MySQL's temporary tables may take together.
fn temporary_tables_bytes(total: u64) -> u64 {
    (total / 32).clamp(4 * MEBIBYTE, 1024 * MEBIBYTE)
}

impl Sizes {
    /// The sizes for a server that may use `memory`, at least 256 MiB.
    #[must_use]
    pub fn of(memory: Memory, flavor: Flavor) -> Self {
        let total = memory.bytes.max(256 * MEBIBYTE);
        // The performance schema costs 250 MiB; below 2 GiB the pool needs them more.
        let performance_schema = flavor == Flavor::Mysql && total >= 2048 * MEBIBYTE;
        let after_fixed = total.saturating_sub(fixed_bytes(flavor, performance_schema));
        let session = Session::of(total, flavor);
        // A quarter for connections. Twenty are the least with which the monitor, replicas, a backup and a small
        // application get along.
        let max_connections = (after_fixed / 4 / session.bytes).clamp(20, 2000);
        let (temporary_table_bytes, temporary_tables) = match flavor {
            Flavor::Mariadb => (session.temporary_table_bytes, 0),
            Flavor::Mysql => (
                (total / 256).clamp(MEBIBYTE, 64 * MEBIBYTE),
                temporary_tables_bytes(total),
            ),
        };
        let for_pool = after_fixed
            .saturating_sub(max_connections * session.bytes)
            .saturating_sub(temporary_tables);
        // The pool's own bookkeeping takes 6 %, and some more is left for dictionary, binlog, network, and what the
        // allocator does not give back.
        let (pool, chunk, instances) = buffer_pool(for_pool * 80 / 100);
        Self {
            buffer_pool_bytes: pool,
            buffer_pool_chunk_bytes: chunk,
            buffer_pool_instances: instances,
            redo_log_bytes: (pool / 2).clamp(48 * MEBIBYTE, 4096 * MEBIBYTE) / MEBIBYTE * MEBIBYTE,
            max_connections,
            session_bytes: session.bytes,
            sort_buffer_bytes: session.sort_buffer_bytes,
            temporary_table_bytes,
            temporary_tables_bytes: temporary_tables,
            open_tables: (total / MEBIBYTE).clamp(400, 4000),
            performance_schema,
        }
    }

    /// The most that a full server takes by these sizes.
    #[must_use]
    pub fn most_bytes(&self, flavor: Flavor) -> u64 {
        fixed_bytes(flavor, self.performance_schema)
            + self.buffer_pool_bytes * 106 / 100
            + self.max_connections * self.session_bytes
            + self.temporary_tables_bytes
    }
}

/// Pool, chunk and number of instances that fit into `bytes`; the pool is never less than 16 MiB.
fn buffer_pool(bytes: u64) -> (u64, u64, u64) {
    let gibibyte = 1024 * MEBIBYTE;
    let (chunk, instances) = if bytes < gibibyte {
        (8 * MEBIBYTE, 1)
    } else {
        (128 * MEBIBYTE, (bytes / gibibyte).min(8))
    };
    let unit = chunk * instances;
    let pool = (bytes / unit * unit).max(16 * MEBIBYTE);
    (pool, chunk, instances)
}

/// What a server may use: what was configured, else the limit of this process's cgroup, else half of the
/// machine, whose other half belongs to the file system's cache and to whatever else runs there.
#[must_use]
pub fn available(configured: Option<Memory>) -> Memory {
    if let Some(memory) = configured {
        return memory;
    }
    let machine = machine_bytes().unwrap_or(1024 * MEBIBYTE);
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    share(machine, cgroup_limit_bytes(&own, Path::new("/sys/fs/cgroup")))
}

fn share(machine: u64, cgroup_limit: Option<u64>) -> Memory {
    let bytes = match cgroup_limit {
        // A tenth of a cgroup is left for the agent and the page cache that is charged to it.
        Some(limit) if limit < machine => limit / 10 * 9,
        _ => machine / 2,
    };
    Memory {
        bytes: bytes.max(256 * MEBIBYTE),
    }
}

fn machine_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    parse_meminfo(&text)
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// The smallest limit on the way from a process's cgroup to the root, of version 2 or 1 (cgroups(7)). `own` is its
/// `/proc/PID/cgroup`, `root` where the groups are mounted.
fn cgroup_limit_bytes(own: &str, root: &Path) -> Option<u64> {
    let mut limits = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (base, file) = match controllers {
            "" => (root.to_path_buf(), "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let relative = Path::new(path.trim_start_matches('/'));
        // In a container the path is the host's, while the mount shows the container's own group at its root.
        for ancestor in relative.ancestors() {
            let text = std::fs::read_to_string(base.join(ancestor).join(file));
            limits.extend(text.ok().and_then(|text| text.trim().parse::<u64>().ok()));
        }
    }
    limits.into_iter().min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_full_server_stays_within_its_memory(mebibytes in 256_u64..2_000_000, mysql: bool) {
            let flavor = if mysql { Flavor::Mysql } else { Flavor::Mariadb };
            let memory = Memory { bytes: mebibytes << 20 };
            let sizes = Sizes::of(memory, flavor);
            // MySQL's fixed part alone is most of 256 MiB: there the least pool and connections are kept.
            if mebibytes >= 300 {
                prop_assert!(sizes.most_bytes(flavor) <= memory.bytes, "{sizes:?}");
            }
            prop_assert_eq!(
                sizes.buffer_pool_bytes % (sizes.buffer_pool_chunk_bytes * sizes.buffer_pool_instances), 0
            );
            prop_assert!(sizes.max_connections >= 20);
            let most = if mysql { 0 } else { sizes.temporary_table_bytes };
            prop_assert!(sizes.sort_buffer_bytes >= 256 << 10 && sizes.temporary_table_bytes >= 512 << 10);
            prop_assert!((512 << 10) + sizes.sort_buffer_bytes + most <= sizes.session_bytes);
        }

        #[test]
        fn more_memory_is_never_a_smaller_server(mebibytes in 256_u64..100_000, more in 0_u64..1000) {
            let small = Sizes::of(Memory { bytes: mebibytes << 20 }, Flavor::Mariadb);
            let large = Sizes::of(Memory { bytes: (mebibytes + more) << 20 }, Flavor::Mariadb);
            prop_assert!(large.max_connections >= small.max_connections);
            prop_assert!(large.open_tables >= small.open_tables);
        }
    }

    /// As `etc/instance.toml` tells.
    #[test]
    fn a_server_of_2_to_3_gibibytes_has_400_connections() {
        let connections = |mebibytes: u64, flavor| {
            Sizes::of(
                Memory {
                    bytes: mebibytes << 20,
                },
                flavor,
            )
            .max_connections
        };
        assert!((400..410).contains(&connections(2100, Flavor::Mariadb)));
        assert!((400..410).contains(&connections(2500, Flavor::Mysql)));
    }

    #[test]
    fn the_smallest_limit_of_a_cgroup_counts_in_both_versions_and_in_a_container() {
        let root = tempfile::tempdir().unwrap();
        let limit = |group: &str, file: &str, text: &str| {
            let group = root.path().join(group);
            std::fs::create_dir_all(&group).unwrap();
            std::fs::write(group.join(file), format!("{text}\n")).unwrap();
        };
        let found = |own: &str| cgroup_limit_bytes(own, root.path());
        assert_eq!(found("0::/\n"), None);
        limit("system.slice", "memory.max", "536870912");
        limit("system.slice/db.service", "memory.max", "max");
        assert_eq!(found("0::/system.slice/db.service\n"), Some(512 << 20));
        limit("system.slice/db.service", "memory.max", "268435456");
        assert_eq!(found("0::/system.slice/db.service\n"), Some(256 << 20));
        // The host's path, of which the container's mount shows its own group alone.
        limit("", "memory.max", "1073741824");
        assert_eq!(found("0::/docker/3f2a\n"), Some(1 << 30));
        // Version 1: one line and one mount a controller; without a limit it has a number beyond every machine.
        limit("memory", "memory.limit_in_bytes", "9223372036854771712");
        assert!(found("4:cpu,cpuacct:/x\n3:memory:/docker/3f2a\n").unwrap() > 1 << 60);
        limit("memory/docker/3f2a", "memory.limit_in_bytes", "2147483648");
        assert_eq!(found("4:cpu,cpuacct:/x\n3:memory:/docker/3f2a\n"), Some(2 << 30));

        let machine = 8 << 30;
        assert_eq!(share(machine, None).bytes, 4 << 30);
        assert_eq!(share(machine, Some(1 << 60)).bytes, 4 << 30);
        assert_eq!(share(machine, Some(1000 << 20)).bytes, 900 << 20);
        assert_eq!(share(machine, Some(100 << 20)).bytes, 256 << 20);
    }

    #[test]
    fn what_is_configured_wins_and_the_machine_is_read() {
        let configured = Memory { bytes: 300 << 20 };
        assert_eq!(available(Some(configured)), configured);
        assert!(available(None).bytes >= 256 << 20);
        assert_eq!(
            parse_meminfo("MemFree: 1 kB\nMemTotal:       16 kB\n"),
            Some(16384)
        );
        assert_eq!(parse_meminfo("nothing"), None);
    }
}
