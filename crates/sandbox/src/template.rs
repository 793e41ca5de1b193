//! Initialised data directories to copy: filling one takes a second or more, copying it a tenth.
//!
//! ```text
//! FOLDER/mariadb-10.11.19-<fingerprint>/
//!   secret.conf                   the passwords of the users in it
//!   data/ binlog/ … run/          as an instance's
//! FOLDER/mariadb-10.11.19-<fingerprint>.lock
//! ```

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use instance::binaries::Binaries;
use instance::config::InstanceConfig;
use instance::data_directory::INITIALISING_MARKER;
use instance::identity::Identity;
use instance::initialise::{Initialisation, grants_of_dba, grants_of_repl, initialise};
use instance::server::Launcher;
use mysql_client::credentials::SecretFile;

use crate::secrets;

/// A complete data directory that nobody uses.
#[derive(Debug, Clone)]
pub struct Template {
    /// What to copy.
    pub data_directory: PathBuf,
    /// The passwords of its users.
    pub secret_file: PathBuf,
}

/// Where tests keep their templates between runs, all of them together: in the folder that the environment names, else
/// among temporary files.
#[must_use]
pub fn shared_folder() -> PathBuf {
    std::env::var_os("MYSQL_SERVICE_TEMPLATES").map_or_else(
        || {
            let user = rustix::process::getuid().as_raw();
            std::env::temp_dir().join(format!("mysql-service-templates-{user}"))
        },
        PathBuf::from,
    )
}

/// The template for these binaries in `folder`, made if it is not there. Others who want it meanwhile wait.
/// `secret_file` has the passwords of its users; without one they are made up.
///
/// # Errors
/// When it cannot be made.
pub async fn prepare(
    binaries: &Binaries,
    folder: &Path,
    secret_file: Option<&Path>,
    launcher: &Launcher,
) -> Result<Template> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let folder = folder
        .canonicalize()
        .with_context(|| format!("cannot find {}", folder.display()))?;
    let fingerprint = fingerprint(binaries);
    let name = format!("{}-{}-{fingerprint:08x}", binaries.flavor, binaries.version);
    let _lock = lock(folder.join(format!("{name}.lock"))).await?;
    let home = folder.join(&name);
    let template = Template {
        data_directory: home.join("data"),
        secret_file: secret_file.map_or_else(|| home.join("secret.conf"), Path::to_path_buf),
    };
    if is_complete(&template.data_directory)? {
        return Ok(template);
    }
    std::fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    if secret_file.is_none() {
        secrets::write_private(&template.secret_file, &secrets::secret_conf()?)?;
    }
    let (secrets, _) = SecretFile::load_with(Some(&template.secret_file), |_| None)?;
    let request = Initialisation {
        config: &configuration(&home, &run_directory(&folder, fingerprint))?,
        binaries,
        secrets: &secrets,
        launcher,
    };
    initialise(&request).await?;
    Ok(template)
}

/// A template with users of other rights than today's is none.
fn fingerprint(binaries: &Binaries) -> u32 {
    let mut hasher = DefaultHasher::new();
    grants_of_repl().hash(&mut hasher);
    grants_of_dba(binaries.flavor).hash(&mut hasher);
    binaries.server.hash(&mut hasher);
    // Half of the hash is enough to tell a handful apart.
    u32::try_from(hasher.finish() >> 32).unwrap_or_default()
}

fn is_complete(data_directory: &Path) -> Result<bool> {
    let identity = Identity::load(data_directory).context("cannot read the identity of a template")?;
    Ok(identity.is_some() && !data_directory.join(INITIALISING_MARKER).exists())
}

async fn lock(path: PathBuf) -> Result<File> {
    let task = tokio::task::spawn_blocking(move || {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    });
    task.await.context("cannot wait for a lock")?
}

/// Where the socket is while a template is made: with a path so short that it fits wherever an instance's does.
fn run_directory(folder: &Path, fingerprint: u32) -> PathBuf {
    folder.join(format!("{fingerprint:08x}"))
}

/// What an initialisation needs to know. Nobody connects to a server of a template: its addresses lead nowhere.
fn configuration(home: &Path, run_directory: &Path) -> Result<InstanceConfig> {
    let directory = |name: &str| format!("{name}_directory = \"{}\"\n", home.join(name).display());
    let text = format!(
        "id = \"template\"\naddress = \"127.0.0.1:1\"\nagent_listen = \"127.0.0.1:1\"\nmemory = \"256M\"\n{}{}{}{}{}{}run_directory = \"{}\"\n",
        directory("data"),
        directory("binlog"),
        directory("relay_log"),
        directory("backup"),
        directory("backup_log"),
        directory("slow_log"),
        run_directory.display(),
    );
    InstanceConfig::parse(&text).context("cannot place a template")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{LONGEST_DIRECTORY_BYTES, Layout};

    #[test]
    fn a_template_fits_wherever_a_cluster_does() {
        let directory = PathBuf::from(format!("/{}", "x".repeat(LONGEST_DIRECTORY_BYTES - 1)));
        let folder = Layout::new(&directory).template_directory();
        let run = run_directory(&folder, u32::MAX);
        configuration(&folder.join("mariadb-10.11.19-ffffffff"), &run).unwrap();
    }
}
