//! Both ends against each other over real loopback sockets.

mod connect;
mod lab;
mod life;
mod streams;
mod transport;
