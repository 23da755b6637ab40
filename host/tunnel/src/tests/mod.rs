//! Both ends against each other over real loopback sockets.

mod connect;
mod lab;
mod life;
mod measure;
mod streams;
mod transport;
