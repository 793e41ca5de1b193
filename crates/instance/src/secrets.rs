//! The secrets as they were read last. What works for long asks anew each time that it logs in.

use mysql_client::credentials::{Login, Password, SecretError, SecretFile};
use tokio::sync::watch;
use topology::AccountNumber;

/// The newest secrets; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Secrets {
    latest: watch::Receiver<SecretFile>,
    token: Password,
}

impl Secrets {
    /// Those that an agent begins with, and where newer ones are put.
    ///
    /// # Errors
    /// When no token follows from them.
    pub(crate) fn new(first: SecretFile) -> Result<(watch::Sender<SecretFile>, Self), SecretError> {
        let token = first.agent_token()?;
        let (newer, latest) = watch::channel(first);
        Ok((newer, Self { latest, token }))
    }

    /// Waits until they are read again; for ever when nobody will.
    pub(crate) async fn changed(&mut self) {
        if self.latest.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// All of them, as they are now.
    pub(crate) fn now(&self) -> SecretFile {
        self.latest.borrow().clone()
    }

    /// As [`SecretFile::root`].
    pub(crate) fn root(&self) -> Result<Login, SecretError> {
        self.latest.borrow().root()
    }

    /// As [`SecretFile::dba`].
    pub(crate) fn dba(&self) -> Result<Login, SecretError> {
        self.latest.borrow().dba()
    }

    /// As [`SecretFile::repl`].
    pub(crate) fn repl(&self) -> Result<Login, SecretError> {
        self.latest.borrow().repl()
    }

    /// As [`SecretFile::replication`].
    pub(crate) fn replication(&self, account: AccountNumber) -> Result<Login, SecretError> {
        self.latest.borrow().replication(account)
    }

    /// What the agents and monitors of the cluster show each other. It waits for the agent's next start, as that of
    /// the others does: one that changed alone would shut itself out.
    pub(crate) fn agent_token(&self) -> &Password {
        &self.token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(root: &str) -> SecretFile {
        let text = format!("root_passwd={root}\nrepl_passwd=repl\ndba_passwd=dba\n");
        SecretFile::parse(text.as_bytes(), "a test").unwrap()
    }

    #[test]
    fn newer_secrets_are_everybodys_and_the_token_waits() {
        let (newer, secrets) = Secrets::new(file("one")).unwrap();
        let held = secrets.clone();
        let token = held.agent_token().expose().to_owned();
        newer.send_replace(file("two"));
        assert_eq!(held.root().unwrap().password.expose(), "two");
        assert_eq!(held.now(), file("two"));
        assert_eq!(held.agent_token().expose(), token);
    }
}
