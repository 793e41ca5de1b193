//! Who the server runs as: looked up in `/etc/passwd` and `/etc/group`.

use std::path::Path;

use anyhow::{Context as _, bail};

use crate::files::Owner;

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUser {
    /// Its name.
    pub name: String,
    pub(crate) owner: Owner,
    /// Every group it is in, its first one included.
    pub(crate) groups: Vec<u32>,
}

/// Whom the server is to run as: `None` means as this process does.
///
/// Started by root, the server runs as `configured`, else as `mysql` where that user exists, else as root.
/// Started by anybody else it runs as that user, and another one cannot be had.
///
/// # Errors
/// When the configured user does not exist or cannot be had.
pub fn server_user(configured: Option<&str>) -> anyhow::Result<Option<ServerUser>> {
    let own = rustix::process::geteuid();
    if own.is_root() {
        return match configured {
            Some("root") => Ok(None),
            Some(name) => find(name)?.map(Some).with_context(|| {
                format!("the configuration's user `{name}` does not exist; make it with useradd")
            }),
            None => find("mysql"),
        };
    }
    let Some(name) = configured else { return Ok(None) };
    match find(name)? {
        Some(user) if user.owner.uid == own.as_raw() => Ok(None),
        _ => bail!(
            "the configuration says that the server runs as `{name}`, but the agent runs as the user {} and only \
             root can start it as another; start the agent as root or as `{name}`, or remove the key `user`",
            own.as_raw()
        ),
    }
}

/// A user by name.
///
/// # Errors
/// When the user database cannot be read.
pub fn find(name: &str) -> anyhow::Result<Option<ServerUser>> {
    let read = |path: &str| {
        std::fs::read_to_string(Path::new(path))
            .with_context(|| format!("read the users of this machine from {path}"))
    };
    Ok(parse(name, &read("/etc/passwd")?, &read("/etc/group")?))
}

fn parse(name: &str, passwd: &str, group: &str) -> Option<ServerUser> {
    let owner = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        match fields.as_slice() {
            [user, _, uid, gid, ..] if *user == name => Some(Owner {
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
            }),
            _ => None,
        }
    })?;
    let mut groups = vec![owner.gid];
    for line in group.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if let [_, _, gid, members, ..] = fields.as_slice()
            && members.split(',').any(|member| member == name)
            && let Ok(gid) = gid.parse()
            && !groups.contains(&gid)
        {
            groups.push(gid);
        }
    }
    Some(ServerUser {
        name: name.to_owned(),
        owner,
        groups,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_its_groups() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbroken\nmysql:x:102:105:MySQL,,,:/nonexistent:/bin/false\n";
        let group = "root:x:0:\nssl-cert:x:110:postgres,mysql\nmysql:x:105:\nother:x:7:mysqlx\n";
        let user = parse("mysql", passwd, group).unwrap();
        assert_eq!(user.owner, Owner { uid: 102, gid: 105 });
        assert_eq!(user.groups, [105, 110]);
        assert_eq!(parse("nobody", passwd, group), None);
    }
}
