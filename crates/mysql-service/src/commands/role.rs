//! `role`: one word, and with `--require` an exit code.

use anyhow::Context as _;
use api::client::{Client, Error};
use instance::config::InstanceConfig;
use serde::Serialize;
use topology::{Address, InstanceId, Role};

use crate::cli::{Output, RoleQuestion};
use crate::failure::{Failure, chain};
use crate::{client, output};

/// What the monitor says of an instance that it does not know.
const UNKNOWN: &str = "Unknown";

#[derive(Serialize)]
struct Answer<'a> {
    instance: &'a str,
    role: &'a str,
}

pub(crate) async fn run(options: &RoleQuestion) -> Result<(), Failure> {
    let instance = match &options.instance {
        Some(instance) => instance.clone(),
        None => own_instance(options)?,
    };
    let client = client::connect(&options.client)?;
    let role = match ask(&client, &instance).await {
        Ok(role) => role,
        Err(failure) => return Err(no_answer(failure, options.require)),
    };
    match options.client.output {
        Output::Table => output::print(&role)?,
        Output::Json => output::print_json(&Answer {
            instance: &instance,
            role: &role,
        })?,
    }
    match options.require {
        Some(wanted) if wanted.to_string() != role => {
            Err(Failure::No(format!("{instance} is {role}, not {wanted}")))
        }
        _ => Ok(()),
    }
}

/// The name of this machine's instance, from the environment or the configuration of its agent.
fn own_instance(options: &RoleQuestion) -> Result<String, Failure> {
    if let Ok(id) = std::env::var("MYSQL_SERVICE_INSTANCE_ID")
        && !id.is_empty()
    {
        return Ok(id);
    }
    let path = options.config.display();
    let text = std::fs::read_to_string(&options.config)
        .with_context(|| {
            format!("no instance is named, and {path} cannot be read: name one, or `--config FILE`")
        })
        .map_err(Failure::Usage)?;
    let config = InstanceConfig::parse(&text)
        .with_context(|| path.to_string())
        .map_err(Failure::Usage)?;
    Ok(config.id.to_string())
}

async fn ask(client: &Client, instance: &str) -> Result<String, Failure> {
    if let Ok(address) = instance.parse::<Address>() {
        let role = client.role(address.host(), address.port()).await?;
        return Ok(role.trim().to_owned());
    }
    let id: InstanceId = instance.parse().map_err(|_| {
        Failure::usage(format!(
            "`{instance}` is neither an instance's name nor a `host:port`"
        ))
    })?;
    match client.instance(&id).await {
        Ok(document) => Ok(document.role.to_string()),
        Err(Error::NotFound { .. }) => Ok(UNKNOWN.to_owned()),
        Err(error) => Err(error.into()),
    }
}

/// With `--require` the question is answered by no when nobody answers: whoever relies on a role must not go on.
fn no_answer(failure: Failure, require: Option<Role>) -> Failure {
    match (failure, require) {
        (Failure::Unreachable(error), Some(_)) => Failure::No(chain(&error)),
        (failure, _) => failure,
    }
}
