//! A real proxy with a real Auth Service, agents and users, over loopback.

mod anonymous;
mod direct;
mod lab;
mod locks;
mod operate;
mod sessions;
mod web;
