//! The description of the API against the routes that there are.

use std::collections::BTreeSet;

use super::documents::OPENAPI;
use super::routes;
use crate::store::SqliteStore;

#[test]
fn the_description_names_every_route_and_no_other() {
    let description: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
    let described: BTreeSet<String> = description["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            methods
                .as_object()
                .unwrap()
                .keys()
                .map(move |method| format!("{} {path}", method.to_uppercase()))
        })
        .collect();
    let served: BTreeSet<String> = routes::<SqliteStore>()
        .listed
        .iter()
        .map(|(method, path)| format!("{method} {path}"))
        .collect();
    assert_eq!(described, served);
}

#[test]
fn every_reference_of_the_description_leads_somewhere() {
    fn references<'a>(value: &'a serde_json::Value, found: &mut Vec<&'a str>) {
        match value {
            serde_json::Value::Object(map) => {
                for (key, value) in map {
                    match value.as_str() {
                        Some(target) if key == "$ref" => found.push(target),
                        _ => references(value, found),
                    }
                }
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let description: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
    let mut found = Vec::new();
    references(&description, &mut found);
    assert!(found.len() > 50);
    for target in found {
        let pointer = target.trim_start_matches('#');
        assert!(description.pointer(pointer).is_some(), "{target} leads nowhere");
    }
}
