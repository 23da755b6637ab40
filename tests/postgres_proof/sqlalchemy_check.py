"""SQLAlchemy over psycopg: reflection, bulk inserts, savepoints, streaming, the pool. The connection stands in PG* variables."""

from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table, create_engine, func, inspect, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship


def check(what, condition):
    if not condition:
        raise SystemExit(f"SQLAlchemy: not so: {what}")
    print(f"SQLAlchemy: {what}")


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "sa_customer"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)
    orders: Mapped[list["Order"]] = relationship(back_populates="customer", cascade="all, delete-orphan")


class Order(Base):
    __tablename__ = "sa_order"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]
    customer_id: Mapped[int] = mapped_column(ForeignKey("sa_customer.id"))
    customer: Mapped[Customer] = relationship(back_populates="orders")


engine = create_engine("postgresql+psycopg://", pool_size=3, pool_pre_ping=True)
Base.metadata.drop_all(engine)
Base.metadata.create_all(engine)
check("reflection", {c["name"] for c in inspect(engine).get_columns("sa_order")} == {"id", "amount", "customer_id"})

with Session(engine) as session:
    session.add_all(Customer(name=f"c{n}", orders=[Order(amount=n), Order(amount=2 * n)]) for n in range(300))
    session.commit()
    total = session.scalar(select(func.sum(Order.amount)).join(Customer).where(Customer.name != "c1"))
    check("bulk inserts with RETURNING, and a join", total == 3 * sum(range(300)) - 3)
    nested = session.begin_nested()
    session.query(Order).delete()
    nested.rollback()
    check("savepoints", session.scalar(select(func.count()).select_from(Order)) == 600)
    session.delete(session.scalars(select(Customer).where(Customer.name == "c7")).one())
    session.commit()
    check("cascades", session.scalar(select(func.count()).select_from(Order)) == 598)

with engine.connect().execution_options(stream_results=True, max_row_buffer=50) as conn:
    found = sum(1 for _ in conn.execute(select(Order.id)))
    check("streamed by a cursor of the server's", found == 598)

with engine.begin() as conn:
    table = Table("sa_plain", MetaData(), Column("n", Integer), Column("t", String))
    table.drop(conn, checkfirst=True)
    table.create(conn)
    conn.execute(table.insert(), [{"n": n, "t": None if n % 2 else "x"} for n in range(5000)])
    check("executemany", conn.scalar(text("select count(t) from sa_plain")) == 2500)
engine.dispose()
check("the pool begins again", engine.connect().scalar(text("select 1")) == 1)
