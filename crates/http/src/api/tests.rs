//! The description and what there is are the same.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::OPENAPI;
use super::route::{ENDPOINTS, find};

fn description() -> Json {
    serde_json::from_str(OPENAPI).unwrap()
}

#[test]
fn every_route_is_described_and_every_described_route_exists() {
    let description = description();
    let verbs = ["get", "put", "post", "delete", "patch", "head", "options", "trace"];
    let described: BTreeSet<(String, String)> = description["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys().filter(|k| verbs.contains(&k.as_str()));
            methods.map(move |method| (path.clone(), method.to_uppercase()))
        })
        .collect();
    let existing: BTreeSet<(String, String)> = ENDPOINTS
        .iter()
        .flat_map(|of| of.methods.iter().map(|m| (of.template.to_owned(), m.to_string())))
        .collect();
    assert_eq!(described, existing);
}

#[test]
fn the_router_finds_what_the_templates_name() {
    for endpoint in ENDPOINTS.iter().filter(|of| !super::super::is_page(of.template)) {
        let path = endpoint.template.replace(['{', '}'], "");
        let found = find(&path).unwrap().unwrap_or_else(|| panic!("{path} leads nowhere"));
        assert_eq!(found.endpoint().template, endpoint.template);
    }
}

#[test]
fn the_description_is_one_of_openapi_3_1() {
    let description = description();
    assert_eq!(description["openapi"], "3.1.0");
    for field in ["title", "version"] {
        assert!(description["info"][field].is_string(), "info.{field}");
    }
    assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut ids = BTreeSet::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        let shared = item["parameters"].as_array().cloned().unwrap_or_default();
        for (method, operation) in item.as_object().unwrap() {
            if method == "parameters" {
                continue;
            }
            let place = format!("{method} {path}");
            let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{place}: no id"));
            assert!(ids.insert(id.to_owned()), "{id} twice");
            assert!(operation["summary"].is_string(), "{place}: no summary");
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.keys().any(|status| status.starts_with('2')), "{place}: no success");
            for (status, response) in responses {
                assert!(
                    status.len() == 3 && status.parse::<u16>().is_ok(),
                    "{place}: {status} is no status"
                );
                assert!(resolve(&description, response)["description"].is_string(), "{place}");
            }
            // Names in the template and path parameters are the same.
            let own = operation["parameters"].as_array().cloned().unwrap_or_default();
            let mut named = BTreeSet::new();
            for parameter in shared.iter().chain(&own) {
                let parameter = resolve(&description, parameter);
                assert!(parameter["schema"].is_object(), "{place}: {parameter}");
                if parameter["in"] == "path" {
                    assert_eq!(parameter["required"], true, "{place}: {parameter}");
                    named.insert(parameter["name"].as_str().unwrap().to_owned());
                }
            }
            let in_path: BTreeSet<String> = path
                .split('{')
                .skip(1)
                .map(|rest| rest.split('}').next().unwrap().to_owned())
                .collect();
            assert_eq!(named, in_path, "{place}");
            let needs_password = path.starts_with("/v1/");
            assert_eq!(operation["security"].is_array(), needs_password, "{place}");
        }
    }
    check_schemas(&description, &description, "");
}

/// Follows a reference.
fn resolve<'d>(description: &'d Json, value: &'d Json) -> &'d Json {
    match value["$ref"].as_str() {
        None => value,
        Some(reference) => {
            let pointer = reference.strip_prefix('#').expect("references stay inside");
            description.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"))
        }
    }
}

/// Checks every schema and every reference, wherever it stands.
fn check_schemas(description: &Json, value: &Json, place: &str) {
    match value {
        Json::Object(map) => {
            if map.contains_key("$ref") {
                resolve(description, value);
            }
            if let Some(schema) = map.get("schema") {
                check_schema(description, schema, place);
            }
            if place == "/components/schemas" {
                for (name, schema) in map {
                    check_schema(description, schema, name);
                }
            }
            for (name, inner) in map {
                check_schemas(description, inner, &format!("{place}/{name}"));
            }
        }
        Json::Array(all) => all.iter().for_each(|inner| check_schemas(description, inner, place)),
        _ => {}
    }
}

fn check_schema(description: &Json, schema: &Json, place: &str) {
    let schema = resolve(description, schema);
    let known = ["object", "array", "string", "integer", "number", "boolean", "null"];
    let types: Vec<&Json> = match &schema["type"] {
        Json::Array(all) => all.iter().collect(),
        Json::Null => Vec::new(),
        one => vec![one],
    };
    assert!(
        !types.is_empty() || schema["oneOf"].is_array() || schema["const"].is_string(),
        "{place}: {schema} says nothing"
    );
    for of in types {
        assert!(known.contains(&of.as_str().unwrap()), "{place}: type {of}");
    }
    for inner in schema["oneOf"].as_array().into_iter().flatten() {
        check_schema(description, inner, place);
    }
    if schema["type"] == "array" {
        check_schema(description, &schema["items"], place);
    }
    let properties = schema["properties"].as_object();
    for inner in properties.into_iter().flat_map(|all| all.values()) {
        check_schema(description, inner, place);
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(!schema["properties"][name.as_str().unwrap()].is_null(), "{place}: {name}");
    }
}
