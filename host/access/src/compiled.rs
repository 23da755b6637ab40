//! The decision. A [`Compiled`] holds one subject's roles with patterns compiled and templates
//! expanded, so that asking about many resources costs no more than comparing.

use crate::role::{ACCOUNT_ROLES, ACCOUNTS};
use crate::{
    Automatic, Decision, Options, Recorded, Recording, Role, Rule, Subject, Target,
    pattern::{Pattern, Side, expand},
};
use std::collections::{BTreeMap, BTreeSet};

/// One subject's roles, ready to be asked. Valid as long as roles and traits are.
#[derive(Debug)]
pub struct Compiled {
    user: String,
    /// By name, so that answers don't depend on the order in which roles were given.
    roles: Vec<CompiledRole>,
}

#[derive(Debug)]
struct CompiledRole {
    name: String,
    options: Options,
    /// Per kind; at most two apply to one (its own and `*`).
    allow: Vec<(String, CompiledRule)>,
    deny: Vec<(String, CompiledRule)>,
}

#[derive(Debug)]
struct CompiledRule {
    labels: Vec<(String, Vec<Pattern>)>,
    principals: BTreeMap<String, Vec<Pattern>>,
    /// The labels as a person wrote them.
    shown: String,
    broken: bool,
}

impl Compiled {
    /// For every kind.
    pub fn new(who: &Subject<'_>) -> Self {
        Self::build(who, |_| true)
    }

    /// For one kind only, which is cheaper when one thing is asked.
    pub fn for_kind(who: &Subject<'_>, kind: &str) -> Self {
        Self::build(who, |rule_kind| applies(rule_kind, kind))
    }

    fn build(who: &Subject<'_>, wanted: impl Fn(&str) -> bool) -> Self {
        let rules = |rules: &BTreeMap<String, Rule>, side| {
            let wanted = rules.iter().filter(|(kind, _)| wanted(kind));
            wanted
                .map(|(kind, rule)| (kind.clone(), CompiledRule::new(rule, who, side)))
                .collect()
        };
        let role = |role: &Role| CompiledRole {
            name: role.name.clone(),
            options: role.options.clone(),
            allow: rules(&role.allow, Side::Allow),
            deny: rules(&role.deny, Side::Deny),
        };
        let mut roles: Vec<_> = who.roles.iter().map(role).collect();
        roles.sort_by(|a, b| a.name.cmp(&b.name));
        Compiled {
            user: who.user.to_owned(),
            roles,
        }
    }

    /// As [`crate::decide`].
    pub fn decide(&self, target: &Target<'_>, asked: &[(&str, &str)]) -> Decision {
        if let Some(reason) = self.denied(target, asked) {
            return Decision::Deny { reason };
        }
        match self.allowing(target, asked).next() {
            Some(role) => Decision::Allow {
                role: role.name.clone(),
            },
            None => Decision::Deny {
                reason: self.not_allowed(target, asked),
            },
        }
    }

    /// As [`crate::may_forward`].
    pub fn may_forward(&self, target: &Target<'_>) -> bool {
        let mut allowing = self.allowing(target, &[]).peekable();
        self.denied(target, &[]).is_none()
            && allowing.peek().is_some()
            && allowing.all(|role| role.options.port_forwarding)
    }

    /// As [`crate::recorded`].
    pub fn recorded(&self, target: &Target<'_>, asked: &[(&str, &str)]) -> Recorded {
        let mut recorded = Recorded::default();
        for role in self.allowing(target, asked) {
            recorded.strict |= role.options.recording == Recording::Strict;
            recorded.parameters |= role.options.record_parameters;
        }
        recorded
    }

    /// As [`crate::automatic`].
    pub fn automatic(&self, target: &Target<'_>, asked: &[(&str, &str)]) -> Option<Automatic> {
        if !asked.contains(&(ACCOUNTS, self.user.as_str())) {
            return None;
        }
        let denied = |role: &str| {
            let mut deny = self.rules(target.kind, Side::Deny).map(|(_, rule)| rule);
            deny.any(|rule| {
                rule.selects(target, Side::Deny) && rule.names(ACCOUNT_ROLES, role, Side::Deny)
            })
        };
        let (mut roles, mut afterwards, mut named) = (BTreeSet::new(), None, false);
        for role in self.allowing(target, asked) {
            afterwards = afterwards.max(role.options.create_db_user);
            for rule in role.allowing(target, asked, &self.user) {
                named |= rule.names(ACCOUNTS, &self.user, Side::Allow);
                let values = rule.principals.get(ACCOUNT_ROLES).into_iter().flatten();
                roles.extend(values.filter_map(Pattern::exact));
            }
        }
        Some(Automatic {
            roles: roles
                .into_iter()
                .filter(|role| !denied(role))
                .map(str::to_owned)
                .collect(),
            afterwards: afterwards?,
            named,
        })
    }

    /// As [`crate::allowed_principals`].
    pub fn allowed_principals(&self, kind: &str, principal: &str) -> Vec<String> {
        let mut values = BTreeSet::new();
        for role in &self.roles {
            let rules = role.rules(kind, Side::Allow);
            for rule in rules.filter(|rule| !rule.labels.is_empty()) {
                let patterns = rule.principals.get(principal).into_iter().flatten();
                values.extend(patterns.filter_map(Pattern::exact).map(str::to_owned));
                if principal == ACCOUNTS && role.options.create_db_user.is_some() {
                    values.insert(self.user.clone());
                }
            }
        }
        let everywhere = |rule: &&CompiledRule| {
            rule.labels.iter().all(|(label, values)| {
                let all = values.iter().any(|v| matches!(v, Pattern::Any)) && label == "*";
                all || values.iter().any(|v| matches!(v, Pattern::Broken))
            })
        };
        let denying: Vec<_> = self
            .rules(kind, Side::Deny)
            .map(|(_, rule)| rule)
            .filter(everywhere)
            .collect();
        values.retain(|value| {
            !denying
                .iter()
                .any(|rule| rule.denies(&[(principal, value)]))
        });
        values.into_iter().collect()
    }

    fn rules(&self, kind: &str, side: Side) -> impl Iterator<Item = (&str, &CompiledRule)> {
        self.roles
            .iter()
            .flat_map(move |role| role.rules(kind, side).map(|r| (&*role.name, r)))
    }

    fn allowing(
        &self,
        target: &Target<'_>,
        asked: &[(&str, &str)],
    ) -> impl Iterator<Item = &CompiledRole> {
        self.roles.iter().filter(|role| {
            let mut rules = role.allowing(target, asked, &self.user);
            rules.next().is_some()
        })
    }

    /// The reason, if a role denies it.
    fn denied(&self, target: &Target<'_>, asked: &[(&str, &str)]) -> Option<String> {
        let (name, rule) = self
            .rules(target.kind, Side::Deny)
            .find(|(_, rule)| rule.selects(target, Side::Deny) && rule.denies(asked))?;
        let what = asked
            .iter()
            .find(|one| !rule.principals.is_empty() && rule.denies(&[**one]));
        let what = what.map_or_else(String::new, |one| format!("{} on ", shown(one)));
        let kind = target.kind;
        let which = match rule.shown.as_str() {
            "" => format!("all {kind} resources"),
            labels => format!("{kind} resources labelled {labels}"),
        };
        let hint = if rule.broken {
            " (the rule holds a pattern that is not valid, which denies everything: correct the role)"
        } else {
            ""
        };
        Some(format!("role {name} denies {what}{which}{hint}"))
    }

    /// Names what is missing.
    fn not_allowed(&self, target: &Target<'_>, asked: &[(&str, &str)]) -> String {
        let (user, kind, name) = (&self.user, target.kind, target.name);
        if self.roles.is_empty() {
            return format!("{user} has no roles, so {kind} {name:?} is not allowed");
        }
        let roles: Vec<&str> = self.roles.iter().map(|role| role.name.as_str()).collect();
        let roles = roles.join(", ");
        if self.allowing(target, &[]).next().is_none() {
            return format!("no role of {user} ({roles}) allows {kind} {name:?}");
        }
        let alone = |one: &&(&str, &str)| self.allowing(target, &[**one]).next().is_none();
        let missing: Vec<String> = asked.iter().filter(alone).map(shown).collect();
        if missing.is_empty() {
            let all: Vec<String> = asked.iter().map(shown).collect();
            return format!(
                "no single role of {user} ({roles}) allows {} together on {kind} {name:?}",
                all.join(" and ")
            );
        }
        format!(
            "no role of {user} ({roles}) allows {} on {kind} {name:?}",
            missing.join(" or ")
        )
    }
}

impl CompiledRole {
    /// The rules that allow everything that is asked.
    fn allowing(
        &self,
        target: &Target<'_>,
        asked: &[(&str, &str)],
        user: &str,
    ) -> impl Iterator<Item = &CompiledRule> {
        let own = self.options.create_db_user.map(|_| (ACCOUNTS, user));
        self.rules(target.kind, Side::Allow).filter(move |rule| {
            let mut asked = asked.iter().filter(|one| Some(**one) != own);
            rule.selects(target, Side::Allow)
                && asked.all(|(principal, value)| rule.names(principal, value, Side::Allow))
        })
    }

    fn rules(&self, kind: &str, side: Side) -> impl Iterator<Item = &CompiledRule> {
        let rules = match side {
            Side::Allow => &self.allow,
            Side::Deny => &self.deny,
        };
        rules
            .iter()
            .filter(move |(rule_kind, _)| applies(rule_kind, kind))
            .map(|(_, rule)| rule)
    }
}

impl CompiledRule {
    fn new(rule: &Rule, who: &Subject<'_>, side: Side) -> Self {
        let compile = |texts: &Vec<String>| {
            let mut patterns = Vec::new();
            texts
                .iter()
                .for_each(|text| expand(text, who.traits, &mut patterns));
            if texts.is_empty() {
                // Says nothing, so it allows nothing; a denial that says nothing is a mistake.
                patterns.push(Pattern::Broken);
            }
            patterns
        };
        let labels: Vec<_> = rule
            .labels
            .iter()
            .map(|(label, values)| (label.clone(), compile(values)))
            .collect();
        let principals: BTreeMap<_, _> = rule
            .principals
            .iter()
            .map(|(p, values)| (p.clone(), compile(values)))
            .collect();
        let is_broken =
            |patterns: &Vec<Pattern>| patterns.iter().any(|p| matches!(p, Pattern::Broken));
        let broken = side == Side::Deny
            && (labels.iter().any(|(_, p)| is_broken(p)) || principals.values().any(is_broken));
        let shown = rule
            .labels
            .iter()
            .map(|(label, values)| format!("{label}={}", values.join("|")));
        let shown = shown.collect::<Vec<_>>().join(" ");
        CompiledRule {
            labels,
            principals,
            shown,
            broken,
        }
    }

    /// Whether the rule speaks of this resource.
    fn selects(&self, target: &Target<'_>, side: Side) -> bool {
        if self.labels.is_empty() {
            return side == Side::Deny; // allows nothing, denies everywhere
        }
        self.labels.iter().all(|(label, patterns)| {
            let certain = |p: &Pattern| match p {
                Pattern::Any => label == "*", // also where there are no labels
                Pattern::Broken => side == Side::Deny,
                _ => false,
            };
            let matches = |value: &String| patterns.iter().any(|p| p.matches(value, side));
            patterns.iter().any(certain)
                || match label.as_str() {
                    "*" => target.labels.values().any(matches),
                    label => target.labels.get(label).is_some_and(matches),
                }
        })
    }

    /// Whether any of the questions is denied, or the whole resource is.
    fn denies(&self, asked: &[(&str, &str)]) -> bool {
        self.principals.is_empty()
            || asked
                .iter()
                .any(|(principal, value)| self.names(principal, value, Side::Deny))
    }

    fn names(&self, principal: &str, value: &str, side: Side) -> bool {
        let patterns = self.principals.get(principal);
        patterns.is_some_and(|patterns| patterns.iter().any(|p| p.matches(value, side)))
    }
}

fn applies(rule_kind: &str, kind: &str) -> bool {
    rule_kind == kind || rule_kind == "*"
}

/// `("db_users", "app")` → `db user "app"`
fn shown((principal, value): &(&str, &str)) -> String {
    format!(
        "{} {value:?}",
        principal
            .strip_suffix('s')
            .unwrap_or(principal)
            .replace('_', " ")
    )
}
