/* The row "sqlite": a database in memory: inserts, an index, joins, groups, updates, patterns. */
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>

static sqlite3 *db;

static int row(void *none, int columns, char **values, char **names) {
    (void)none, (void)names;
    for (int i = 0; i < columns; i++) printf("%s%c", values[i] ? values[i] : "null", i + 1 < columns ? ' ' : '\n');
    return 0;
}

static void sql(const char *text) {
    char *error = NULL;
    if (sqlite3_exec(db, text, row, NULL, &error)) {
        fprintf(stderr, "%s: %s\n", text, error);
        exit(1);
    }
}

int main(void) {
    if (sqlite3_open(":memory:", &db)) return 1;
    sql("create table people (id integer primary key, name text, city integer, age integer);"
        "create table cities (id integer primary key, name text, size real); begin");
    sqlite3_stmt *insert;
    if (sqlite3_prepare_v2(db, "insert into people values (?, ?, ?, ?)", -1, &insert, NULL)) return 1;
    unsigned seed = 1;
    for (int i = 1; i <= 60000; i++) {
        char name[32];
        seed = seed * 1664525u + 1013904223u;
        snprintf(name, sizeof name, "name%u-%x", seed >> 20, seed >> 8 & 0xfff);
        sqlite3_bind_int(insert, 1, i);
        sqlite3_bind_text(insert, 2, name, -1, SQLITE_TRANSIENT);
        sqlite3_bind_int(insert, 3, (int)(seed >> 9) % 300);
        sqlite3_bind_int(insert, 4, (int)(seed >> 12) % 90);
        if (sqlite3_step(insert) != SQLITE_DONE) return 1;
        sqlite3_reset(insert);
    }
    sqlite3_finalize(insert);
    sql("with recursive n(i) as (select 0 union all select i + 1 from n where i < 299)"
        " insert into cities select i, 'city' || i, i * 1.5 from n; commit");
    sql("create index by_city on people (city, age)");
    sql("select count(*), sum(age), min(name), max(name) from people where name like '%a1%'");
    sql("select c.name, count(*), avg(p.age) from people p join cities c on c.id = p.city"
        " where p.age between 20 and 60 group by c.id order by 2 desc, 1 limit 20");
    sql("update people set age = age + 1 where city % 3 = 1");
    sql("select age, count(*), group_concat(city) from (select * from people where id % 97 = 0 order by id)"
        " group by age order by age limit 15");
    sql("delete from people where id % 5 = 0");
    sql("select count(*), sum(length(name)), sum(city * age) from people");
    sql("select substr(name, 1, 6) as start, count(*) from people group by start order by 2 desc, 1 limit 10");
    sqlite3_close(db);
    return 0;
}
