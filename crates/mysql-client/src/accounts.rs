//! Accounts on a server. For the agent, which works as root.

use crate::credentials::Login;
use crate::error::Error;
use crate::server::Server;
use crate::statements::literal;

/// Whether a change goes to the replicas too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binlog {
    /// It does. Under semi-sync the change waits for an acknowledgement, and while it waits nobody can log
    /// in: keep a session open.
    Written,
    /// It stays on this server and leaves no transaction of its own.
    Skipped,
}

impl Server {
    /// Makes sure that the account is there with these privileges, each a list and what it is on, such as
    /// `("REPLICATION SLAVE, PROCESS", "*.*")`. Returns whether it had to be made. An account that is there
    /// keeps its password and is not written to when it has the privileges.
    pub async fn ensure_user(
        &mut self,
        login: &Login,
        host: &str,
        grants: &[(&str, &str)],
        binlog: Binlog,
    ) -> Result<bool, Error> {
        let account = account(&login.user, host);
        let exists = self.user_exists(&login.user, host).await?;
        if !exists {
            let password = literal(login.password.expose());
            let sql = format!("CREATE USER {account} IDENTIFIED BY {password}");
            let what = format!("CREATE USER {account}");
            self.execute_as(&sql, &what, &[&password, login.password.expose()], binlog)
                .await?;
        }
        let held = if exists {
            self.query(&format!("SHOW GRANTS FOR {account}")).await?
        } else {
            Vec::new()
        };
        for (privileges, on) in grants {
            let has = |privilege: &str| {
                held.iter()
                    .filter_map(|row| row.value(0))
                    .any(|grant| grants_it(grant, privilege, on))
            };
            if !privileges.split(',').map(str::trim).all(has) {
                let sql = format!("GRANT {privileges} ON {on} TO {account}");
                self.execute_as(&sql, &sql, &[], binlog).await?;
            }
        }
        Ok(!exists)
    }

    /// Gives an account that is there another password.
    pub async fn set_user_password(
        &mut self,
        login: &Login,
        host: &str,
        binlog: Binlog,
    ) -> Result<(), Error> {
        let account = account(&login.user, host);
        let password = literal(login.password.expose());
        let sql = format!("ALTER USER {account} IDENTIFIED BY {password}");
        let what = format!("ALTER USER {account}");
        self.execute_as(&sql, &what, &[&password, login.password.expose()], binlog)
            .await
    }

    /// Whether there is such an account.
    pub async fn user_exists(&mut self, user: &str, host: &str) -> Result<bool, Error> {
        let sql = format!(
            "SELECT COUNT(*) FROM mysql.user WHERE User = {} AND Host = {}",
            literal(user),
            literal(host)
        );
        Ok(self.require_value(&sql).await? != "0")
    }

    /// Removes an account, if it is there. Its sessions go on: see [`end_session`](Self::end_session).
    pub async fn remove_user(&mut self, user: &str, host: &str, binlog: Binlog) -> Result<(), Error> {
        // A replica may lack it.
        let sql = format!("DROP USER IF EXISTS {}", account(user, host));
        self.execute_as(&sql, &sql, &[], binlog).await
    }

    /// Refuses new logins of the account, on this server alone. Sessions that are there go on: see
    /// [`dump_threads_of`](Self::dump_threads_of) and [`end_session`](Self::end_session).
    pub async fn lock_user(&mut self, user: &str, host: &str) -> Result<(), Error> {
        let sql = format!("ALTER USER {} ACCOUNT LOCK", account(user, host));
        self.execute_as(&sql, &sql, &[], Binlog::Skipped).await
    }

    /// Takes [`lock_user`](Self::lock_user) back, on this server alone.
    pub async fn unlock_user(&mut self, user: &str, host: &str) -> Result<(), Error> {
        let sql = format!("ALTER USER {} ACCOUNT UNLOCK", account(user, host));
        self.execute_as(&sql, &sql, &[], Binlog::Skipped).await
    }

    /// Runs a statement with or without the binlog; `what` names it in errors, `secrets` never appear there.
    pub(crate) async fn execute_as(
        &mut self,
        sql: &str,
        what: &str,
        secrets: &[&str],
        binlog: Binlog,
    ) -> Result<(), Error> {
        if binlog == Binlog::Written {
            return self.execute_secret(sql, what, secrets).await;
        }
        self.execute("SET SESSION sql_log_bin = 0").await?;
        let outcome = self.execute_secret(sql, what, secrets).await;
        let restored = self.execute("SET SESSION sql_log_bin = 1").await;
        if restored.is_err() {
            // Nothing of this session may go unlogged by mistake.
            self.connection.close();
        }
        outcome.and(restored)
    }
}

fn account(user: &str, host: &str) -> String {
    format!("{}@{}", literal(user), literal(host))
}

/// Whether a line of `SHOW GRANTS` gives `privilege` on `on`.
fn grants_it(line: &str, privilege: &str, on: &str) -> bool {
    let Some((privileges, rest)) = line
        .strip_prefix("GRANT ")
        .and_then(|line| line.split_once(" ON "))
    else {
        return false;
    };
    let object = rest.split_once(" TO ").map_or(rest, |(object, _)| object);
    let plain = |object: &str| object.replace(['`', '\\'], "");
    plain(object) == plain(on)
        && privileges
            .split(',')
            .map(str::trim)
            .any(|held| held.eq_ignore_ascii_case(privilege))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_read_from_what_servers_print() {
        let line = "GRANT PROCESS, REPLICATION SLAVE ON *.* TO `repl_2`@`%` IDENTIFIED BY PASSWORD '*1'";
        assert!(grants_it(line, "REPLICATION SLAVE", "*.*"));
        assert!(grants_it(line, "process", "*.*"));
        assert!(!grants_it(line, "REPLICATION", "*.*"));
        assert!(!grants_it(line, "PROCESS", "`app`.*"));
        let line = "GRANT ALL PRIVILEGES ON `app`.* TO `app`@`%`";
        assert!(grants_it(line, "ALL PRIVILEGES", "`app`.*"));
        assert!(!grants_it("", "PROCESS", "*.*"));
    }

    #[test]
    fn an_account_is_quoted() {
        assert_eq!(account("o'brien", "%"), "'o''brien'@'%'");
    }
}
