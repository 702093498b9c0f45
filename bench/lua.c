/* Runs a script with the Lua, or the LuaJIT, that this is linked with. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdio.h>

int main(int argc, char **argv) {
    lua_State *lua = luaL_newstate();
    if (argc < 2 || !lua) return 2;
    luaL_openlibs(lua);
    if (luaL_loadfile(lua, argv[1]) || lua_pcall(lua, 0, 0, 0)) {
        fprintf(stderr, "%s\n", lua_tostring(lua, -1));
        return 1;
    }
    lua_close(lua);
    return 0;
}
