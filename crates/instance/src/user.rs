//! Who the server runs as: looked up in `/etc/passwd` and `/etc/group`.

use std::path::Path;

use anyhow::Context as _;

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

/// Why a server cannot run as the user that is asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserRefusal {
    /// It does not exist.
    #[error("the configuration's user `{0}` does not exist; make it with useradd")]
    Unknown(String),
    /// Nobody said that it may be root.
    #[error(
        "no server runs as root unless it must, and there is no user `{DEFAULT_USER}`: make it (useradd --system \
         {DEFAULT_USER}), or name another one with the key `user` (user = \"root\" if it must be root)"
    )]
    NoDefault,
    /// Only root can.
    #[error(
        "the configuration says that the server runs as `{name}`, but the agent runs as the user {own} and only root \
         can start it as another; start the agent as root or as `{name}`, or remove the key `user`"
    )]
    NotRoot {
        /// The configured one.
        name: String,
        /// The agent's.
        own: u32,
    },
}

/// Who servers of a root agent run as when nobody is named.
pub const DEFAULT_USER: &str = "mysql";

/// Whom the server is to run as: `None` means as this process does.
///
/// Started by root, the server runs as `configured`, else as [`DEFAULT_USER`]. Started by anybody else it runs as that
/// user, and another one cannot be had.
///
/// # Errors
/// A [`UserRefusal`], or when the user database cannot be read.
pub fn server_user(configured: Option<&str>) -> anyhow::Result<Option<ServerUser>> {
    let own = rustix::process::geteuid().as_raw();
    let found = match configured {
        Some("root") => None,
        Some(name) => find(name)?,
        None => find(DEFAULT_USER)?,
    };
    Ok(choose(own, configured, found)?)
}

/// The same for an agent of the user `own`, when this is the user that is meant, if it exists.
fn choose(
    own: u32,
    configured: Option<&str>,
    found: Option<ServerUser>,
) -> Result<Option<ServerUser>, UserRefusal> {
    const ROOT: u32 = 0;
    if own == ROOT {
        return match (configured, found) {
            (Some("root"), _) => Ok(None),
            (_, Some(user)) => Ok(Some(user)),
            (Some(name), None) => Err(UserRefusal::Unknown(name.to_owned())),
            (None, None) => Err(UserRefusal::NoDefault),
        };
    }
    match (configured, found) {
        (None, _) => Ok(None),
        (Some(_), Some(user)) if user.owner.uid == own => Ok(None),
        (Some(name), _) => Err(UserRefusal::NotRoot {
            name: name.to_owned(),
            own,
        }),
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
    fn a_server_is_root_only_where_that_is_said() {
        let mysql = ServerUser {
            name: "mysql".to_owned(),
            owner: Owner { uid: 102, gid: 105 },
            groups: vec![105],
        };
        let found = || Some(mysql.clone());
        assert_eq!(choose(0, None, found()), Ok(found()));
        assert_eq!(choose(0, None, None), Err(UserRefusal::NoDefault));
        assert_eq!(choose(0, Some("root"), None), Ok(None));
        assert_eq!(choose(0, Some("mysql"), found()), Ok(found()));
        assert_eq!(
            choose(0, Some("x"), None),
            Err(UserRefusal::Unknown("x".to_owned()))
        );
        assert_eq!(choose(102, Some("mysql"), found()), Ok(None));
        assert_eq!(choose(7, None, found()), Ok(None));
        for configured in ["mysql", "root"] {
            let refused = choose(7, Some(configured), found()).unwrap_err();
            assert!(refused.to_string().contains(configured), "{refused}");
        }
    }

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
