//! What users call: which resources are there for them, and who they are.

use std::collections::BTreeMap;

use postern_access::{Compiled, Role, Subject, Target};
use postern_api::v1::user_service_server::UserService;
use postern_api::v1::{
    ListResourcesRequest, ListResourcesResponse, ResourceView, StatusRequest, StatusResponse,
};
use postern_identity::{ResourceId, UserIdentity};
use tonic::{Request, Response, Status};

use crate::caller;
use crate::error::internal;
use crate::state::{Shared, State};

pub struct Users(pub Shared);

#[tonic::async_trait]
impl UserService for Users {
    async fn list_resources(
        &self,
        req: Request<ListResourcesRequest>,
    ) -> Result<Response<ListResourcesResponse>, Status> {
        let user = caller::user(&self.0, &req, "UserService/ListResources").await?;
        let roles = self
            .0
            .roles(&user.roles)
            .await
            .map_err(|e| internal("read the roles", e))?;
        Ok(Response::new(ListResourcesResponse {
            resources: visible(&self.0, &user, &roles, req.get_ref()),
        }))
    }

    async fn status(
        &self,
        req: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let user = caller::user(&self.0, &req, "UserService/Status").await?;
        let roles = self
            .0
            .roles(&user.roles)
            .await
            .map_err(|e| internal("read the roles", e))?;
        let logins = State::logins(&user, &roles);
        let cluster = self.0.cluster().to_owned();
        Ok(Response::new(StatusResponse {
            user: user.name,
            roles: user.roles,
            logins,
            cluster,
        }))
    }
}

/// Resources that a role lets this user see. Each agent decides by its own labels; one that lets him in is enough.
fn visible(
    state: &Shared,
    user: &UserIdentity,
    roles: &[Role],
    wanted: &ListResourcesRequest,
) -> Vec<ResourceView> {
    let rules = Compiled::new(&Subject {
        user: &user.name,
        roles,
        traits: &user.traits,
    });
    let mut views: BTreeMap<ResourceId, ResourceView> = BTreeMap::new();
    for (_, seen) in state.inventory.all() {
        let kind = &seen.announced.kind;
        if !wanted.kind.is_empty() && wanted.kind != *kind {
            continue;
        }
        let principal = login_principal(kind);
        let literal = rules.allowed_principals(kind, principal);
        for resource in &seen.announced.resources {
            let target = Target {
                kind,
                name: &resource.name,
                labels: &resource.labels,
            };
            let matches = wanted
                .labels
                .iter()
                .all(|(k, v)| resource.labels.get(k) == Some(v));
            if !matches || !rules.decide(&target, &[]).is_allow() {
                continue;
            }
            let here = |login: &&String| rules.decide(&target, &[(principal, login)]).is_allow();
            let id = ResourceId {
                kind: kind.clone(),
                name: resource.name.clone(),
            };
            let view = views.entry(id).or_insert_with_key(|id| ResourceView {
                kind: id.kind.clone(),
                name: id.name.clone(),
                dns: id.dns(state.cluster()),
                ..ResourceView::default()
            });
            // Where agents disagree about labels, a healthy one is believed.
            if view.agents == 0 {
                view.labels = resource.labels.clone();
            }
            if seen.healthy() {
                view.agents += 1;
                match seen.unreachable.get(&resource.name) {
                    None => view.healthy = true,
                    Some(why) => {
                        view.agents_failing += 1;
                        let longest = view.unreachable.as_ref();
                        if longest.is_none_or(|other| why.since_unix < other.since_unix) {
                            view.unreachable = Some(why.clone());
                        }
                    }
                }
            }
            view.direct |= resource.direct;
            view.logins.extend(literal.iter().filter(here).cloned());
            view.logins.sort_unstable();
            view.logins.dedup();
        }
    }
    views.into_values().collect()
}

/// The principal type by which one is somebody at a resource of this kind.
fn login_principal(kind: &str) -> &'static str {
    match kind {
        "postgres" => "db_users",
        _ => "logins",
    }
}
